// @ts-check
/**
 * What several methods list for a query, side by side: the view "compare". Its rows are joined by the examples' ids.
 *
 * comparison(chunk, columns, length, isOpponents)   the rows, in groups by which of the methods list them
 * sharedOf(lists, one, other)                       how many examples two lists have in common, and of how many
 */

const LENGTHS = ["10", "20", "50", "100"];
const MOST_COLUMNS = 3;
const COMPARED_TEXT = 220;

PARAMS["columns"] = (value, head) => {
  const columns = columnsOf(value);
  return columns.length >= 2 && columns.every((column) => Number.isInteger(column) && column >= 0 && column < head.methods.length);
};
PARAMS["top"] = (value) => LENGTHS.includes(value);
PARAMS["side"] = (value) => value === "opponents";

/**
 * Return the positions of methods that an address names by their numbers, from 1: "1,3".
 * @param {string} value
 */
function columnsOf(value) {
  return [...new Set(value.split(",").map((number) => Number(number) - 1))].sort((one, other) => one - other);
}

/** @param {number[]} columns */
function columnsText(columns) {
  return columns.map((column) => column + 1).join(",");
}

/**
 * @typedef {object} ComparedGroup
 * @property {boolean[]} isIn  By column: whether the method lists these examples.
 * @property {number[]} places  Positions in the chunk's examples, in the order of the first column that lists them.
 */

/**
 * Join the lists of some methods.
 * @param {QueryChunk} chunk
 * @param {number[]} columns  Positions of methods.
 * @param {number} length  How many of each list count.
 * @param {boolean} isOpponents
 * @returns {{lists: number[][], groups: ComparedGroup[]}}
 */
function comparison(chunk, columns, length, isOpponents) {
  const lists = columns.map((column) => {
    const known = chunk.lists[column];
    return ((isOpponents ? known?.opponents : known?.proponents) ?? []).slice(0, length);
  });
  const sets = lists.map((list) => new Set(list));
  /** @type {Map<string, ComparedGroup>} */
  const groups = new Map();
  for (const place of new Set(lists.flat())) {
    const isIn = sets.map((set) => set.has(place));
    const key = isIn.join();
    const group = groups.get(key) ?? { isIn, places: [] };
    group.places.push(place);
    groups.set(key, group);
  }
  const size = (/** @type {ComparedGroup} */ group) => group.isIn.filter(Boolean).length;
  return { lists, groups: [...groups.values()].sort((one, other) => size(other) - size(one)) };
}

/**
 * @param {number[][]} lists
 * @param {number} one
 * @param {number} other
 */
function sharedOf(lists, one, other) {
  const [left, right] = [lists[one] ?? [], new Set(lists[other] ?? [])];
  return { shared: left.filter((place) => right.has(place)).length, of: Math.max(left.length, right.size) };
}

/** @param {ViewProps} props */
function CompareView({ head, state, chunk }) {
  const columns = columnsOf(state["columns"] || columnsText([...head.methods.keys()].slice(0, MOST_COLUMNS)));
  const length = Number(state["top"] || LENGTHS[0]);
  const isOpponents = state["side"] === "opponents";
  const { lists, groups } = comparison(chunk, columns, length, isOpponents);
  const names = columns.map((column) => plain(methodKeys(head)[column] ?? ""));
  return h(
    Fragment,
    null,
    h(CompareControls, { head, columns, length, isOpponents }),
    h(Overlaps, { names, lists, length }),
    h(Problems, { texts: columns.flatMap((column, at) => missingFrom(head, chunk, column, names[at] ?? "", isOpponents)) }),
    groups.length > 0 && h(ComparedTable, { chunk, columns, names, groups, isOpponents }),
  );
}

/**
 * @param {Head} head
 * @param {QueryChunk} chunk
 * @param {number} column
 * @param {string} name
 * @param {boolean} isOpponents
 */
function missingFrom(head, chunk, column, name, isOpponents) {
  const lists = chunk.lists[column] ?? null;
  if (lists === null) return [`${name} has no scores for this query.`];
  if (!isOpponents) return [];
  if (lists.opponents === null || !head.methods[column]?.has_opponents) return [`${name} knows no opponents.`];
  return lists.opponents.length === 0 ? [`${name} gives no example a negative score.`] : [];
}

/** @param {{head: Head, columns: number[], length: number, isOpponents: boolean}} props */
function CompareControls({ head, columns, length, isOpponents }) {
  const toggled = (/** @type {number} */ column) =>
    columnsText(columns.includes(column) ? columns.filter((kept) => kept !== column) : [...columns, column].sort((one, other) => one - other));
  return h(
    "div",
    { class: "filters" },
    h(
      "fieldset",
      { class: "checks" },
      h("legend", { class: "label" }, "Compare"),
      methodKeys(head).map((key, column) =>
        h(
          "label",
          { key },
          h("input", {
            type: "checkbox",
            checked: columns.includes(column),
            disabled: columns.length <= 2 && columns.includes(column),
            onChange: () => go({ columns: toggled(column) }, { replace: true }),
          }),
          " ",
          h("bdi", null, plain(key)),
        ),
      ),
    ),
    h(Choice, { label: "Strongest", name: "top", value: String(length), options: LENGTHS.map((text) => /** @type {[string, string]} */ ([text, text])) }),
    h(Choice, { label: "Side", name: "side", value: isOpponents ? "opponents" : "", options: [["", "proponents"], ["opponents", "opponents"]] }),
  );
}

/** @param {{names: string[], lists: number[][], length: number}} props */
function Overlaps({ names, lists, length }) {
  const pairs = names.flatMap((_, one) => names.slice(one + 1).map((__, next) => ({ one, other: one + 1 + next })));
  return h(
    "ul",
    { class: "overlaps", "aria-label": `Overlap of the ${length} strongest` },
    pairs.map(({ one, other }) => {
      const { shared, of } = sharedOf(lists, one, other);
      return h(
        "li",
        { key: `${one} ${other}` },
        h("span", { class: "big" }, of === 0 ? UNKNOWN : percent(shared / of)),
        h("span", { class: "soft" }, of === 0 ? "nothing to compare: " : `${count(shared)} of ${count(of)} shared: `, h("bdi", null, names[one]), " and ", h("bdi", null, names[other])),
      );
    }),
  );
}

/** @param {{chunk: QueryChunk, columns: number[], names: string[], groups: ComparedGroup[], isOpponents: boolean}} props */
function ComparedTable({ chunk, columns, names, groups, isOpponents }) {
  const largest = columns.map((column) => largestOf(chunk.examples.map((example) => example.places[column]?.score ?? null)));
  return h(
    "table",
    { class: "compared" },
    h("caption", { class: "unseen" }, `${isOpponents ? "Opponents" : "Proponents"} by ${names.join(", ")}, joined by example`),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Training example"), names.map((name, at) => h("th", { scope: "col", class: "number", key: at }, h("bdi", null, name))))),
    groups.map((group) =>
      h(
        "tbody",
        { key: group.isIn.join() },
        h("tr", { class: "group" }, h("th", { scope: "rowgroup", colSpan: columns.length + 1 }, groupTitle(group, names), " ", h("small", null, count(group.places.length)))),
        group.places.map((place) => h(ComparedRow, { key: place, chunk, place, columns, names, isIn: group.isIn, largest, isOpponents })),
      ),
    ),
  );
}

/** @param {ComparedGroup} group @param {string[]} names */
function groupTitle({ isIn }, names) {
  const size = isIn.filter(Boolean).length;
  if (size === names.length) return size === 2 ? "In both" : `In all ${size}`;
  const listing = names.filter((_, at) => isIn[at]);
  return h(Fragment, null, size === 1 ? "Only in " : "In ", listing.map((name, at) => [at > 0 && " and ", h("bdi", { key: name }, name)]));
}

/** @param {{chunk: QueryChunk, place: number, columns: number[], names: string[], isIn: boolean[], largest: number[], isOpponents: boolean}} props */
function ComparedRow({ chunk, place, columns, names, isIn, largest, isOpponents }) {
  const example = /** @type {Example} */ (chunk.examples[place]);
  const ranks = columns.map((column) => rankIn(example, column, isOpponents));
  return h(
    "tr",
    null,
    h(
      "th",
      { scope: "row" },
      h(ExampleText, { chunk, example, limit: COMPARED_TEXT }),
      h("span", { class: "meta" }, h(FactMark, { example }), " ", h(ExampleLink, { id: example.id, name: example.name, isStep: example.text === null })),
    ),
    columns.map((column, at) => {
      const known = example.places[column] ?? null;
      return h(
        "td",
        { key: column, class: `number${isIn[at] ? "" : " soft"}`, "data-label": names[at] },
        h("span", { class: "rank" }, known === null ? "not ranked" : rankText(ranks[at] ?? null, known.ties)),
        at > 0 && h(RankChange, { from: ranks[0] ?? null, to: ranks[at] ?? null }),
        known !== null && h("span", { class: "score" }, scoreText(known.score, largest[at] ?? 0)),
      );
    }),
  );
}

/** @param {Example} example @param {number} column @param {boolean} isOpponents */
function rankIn(example, column, isOpponents) {
  const known = example.places[column];
  return (isOpponents ? known?.rank_from_below : known?.rank) ?? null;
}

/** How far an example moves from its rank in the first column. @param {{from: number | null, to: number | null}} props */
function RankChange({ from, to }) {
  if (from === null || to === null) return null;
  if (from === to) return h("span", { class: "change soft" }, "=");
  const isUp = to < from;
  return h("span", { class: `change ${isUp ? "up" : "down"}` }, h("span", { "aria-hidden": "true" }, isUp ? "↑" : "↓"), h("span", { class: "unseen" }, isUp ? "up " : "down "), count(Math.abs(from - to)));
}

VIEWS["compare"] = { title: "Compare", of: "query", show: (props) => h(CompareView, props), isEmpty: (head) => head.methods.length < 2 };
