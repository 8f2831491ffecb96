// @ts-check
/** The view of all queries: search, filters, and a table that any column sorts. */

const FOUND_TEXT = 160;

/** @param {{head: Head, method: number}} props */
function QueriesView({ head, method }) {
  const places = chosenQueries(head);
  const total = head.queries.ids.length;
  const filters = filtersOf(head);
  const isNarrowed = places.length < total;
  return h(
    "div",
    { class: "queries" },
    h("h1", null, "Which training examples taught it?"),
    h("p", { class: "lead" }, "Choose a query to see the examples that lowered its loss, and those that raised it."),
    h(
      "search",
      { class: "filters" },
      h(Search, { key: "find" }),
      head.queries.said_right.some((right) => right !== null) &&
        h(Choice, { label: "Answered", name: "answered", value: STATE["answered"] ?? "", options: answeredOptions(head) }),
      filters.map(({ name, title, values }) =>
        h(Choice, {
          key: name,
          label: plain(title),
          name,
          value: STATE[name] ?? "",
          options: [["", "all"], ...[...values].map(([value, number]) => /** @type {[string, string]} */ ([value, `${plain(value)} (${count(number)})`]))],
        }),
      ),
      head.methods.length > 1 && sortKeys(head).includes("precision") && h(Choice, { label: "P@10 by", name: "method", value: methodKeys(head)[method] ?? "", options: methodKeys(head).map((key) => /** @type {[string, string]} */ ([key, plain(key)])) }),
    ),
    h(
      "p",
      { class: "count", role: "status" },
      isNarrowed && `${count(places.length)} of `,
      counted(total, "query", "queries"),
      !isNarrowed && answeredText(head),
      isNarrowed && [" · ", h("a", { href: href(Object.fromEntries(["find", "answered", ...filters.map(({ name }) => name)].map((name) => [name, ""]))) }, "show all")],
    ),
    h(FoundExample, { head }),
    places.length > 0
      ? h(QueryTable, { head, places, method, asked: LAST_CHOICE.asked })
      : h("p", { class: "empty" }, "No query fits. A query fits if its prompt, answers, name or number have all words of the search."),
  );
}

/** @param {Head} head */
function answeredText({ queries }) {
  const known = queries.said_right.filter((right) => right !== null);
  const right = known.filter((value) => value).length;
  return known.length === 0 ? "" : `; the model answers ${right === known.length ? "all" : count(right)} right`;
}

/**
 * @param {Head} head
 * @returns {[string, string][]}
 */
function answeredOptions({ queries }) {
  const number = (/** @type {boolean} */ right) => count(queries.said_right.filter((value) => value === right).length);
  return [["", "all"], ["right", `right (${number(true)})`], ["wrong", `wrong (${number(false)})`]];
}

function Search() {
  return h(
    "label",
    { class: "choice find" },
    h("span", { class: "label" }, "Search"),
    h("input", {
      id: "find",
      type: "search",
      value: STATE["find"] ?? "",
      placeholder: "words of the prompt or an answer, or #number",
      title: "An example is found by its number",
      onInput: (/** @type {Event} */ event) => go({ find: /** @type {HTMLInputElement} */ (event.target).value }, { replace: true }),
    }),
  );
}

const NUMBER = /^(#?)(-?\d{1,19})$/;

/** A link to the example whose number is searched for, if the report has a page of it. @param {{head: Head}} props */
function FoundExample({ head }) {
  const asked = NUMBER.exec((STATE["find"] ?? "").trim());
  if (asked === null) return null;
  const id = String(BigInt(asked[2] ?? ""));
  const chunk = exampleChunk(head.example_chunks, id);
  if (chunk < 0 || (asked[1] === "" && queryPlace(head, id) >= 0)) return null;
  return h(Loaded, {
    name: `example-${chunk}`,
    show: (/** @type {ExampleChunk} */ { examples }) => {
      const found = examples.find((example) => example.id === id);
      if (found === undefined) return null;
      return h("p", { class: "found" }, "Training example ", h("a", { href: href({ view: "example", query: "", example: id }), "data-step": true }, h("bdi", null, `#${id}`)), found.text !== null && [": ", h("bdi", { class: "words" }, plain(excerpt(found.text, [], FOUND_TEXT).text)), found.text.length > FOUND_TEXT && " …"]);
    },
  });
}

/**
 * The table, which is drawn anew only where the address says so, since it may have thousands of rows.
 * @extends {preact.Component<{head: Head, places: number[], method: number, asked: string}>}
 */
class QueryTable extends Component {
  address = "";

  shouldComponentUpdate() {
    return this.address !== writeAddress(STATE);
  }

  render() {
    const { head, places, method, asked } = this.props;
    this.address = writeAddress(STATE);
    const columns = queryColumns(head, method);
    return h(
      "table",
      { class: "query-table", role: "table", style: { "--columns": widths(columns) } },
      h("caption", { class: "unseen" }, "Queries"),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((column) => h(ColumnHead, { column, key: column.key })))),
      h(Growing, {
        tag: "tbody",
        attributes: { role: "rowgroup" },
        asked,
        least: places.indexOf(queryPlace(head, STATE["query"] ?? "")) + 1, // the one that a reader comes from
        entries: places,
        show: (/** @type {number} */ place) => h(QueryRow, { key: place, head, place, method, columns }),
      }),
    );
  }
}

/** @param {Column[]} columns */
function widths(columns) {
  const width = (/** @type {Column} */ column) =>
    column.key === "query" ? "minmax(14rem, 3fr)" : column.key === "precision" ? "minmax(5.9rem, .6fr)" : column.isNumber ? "minmax(4.6rem, .5fr)" : column.key === "answer" ? "minmax(9rem, 1.4fr)" : "minmax(6rem, 1.2fr)";
  return columns.map(width).join(" ");
}

/** @param {{column: Column}} props */
function ColumnHead({ column }) {
  const isSorted = STATE["sort"] === column.key;
  const down = isDown(column);
  const next = { sort: column.key, down: (isSorted ? !down : column.isDown) ? "yes" : "no" };
  return h(
    "th",
    { role: "columnheader", scope: "col", class: column.isNumber ? "number" : "", "aria-sort": isSorted ? (down ? "descending" : "ascending") : "none" },
    h(
      "button",
      { type: "button", class: "quiet", title: column.meaning, onClick: () => go(next, { replace: true }) },
      column.title,
      h("span", { class: "arrow", "aria-hidden": "true" }, isSorted ? (down ? " ↓" : " ↑") : ""),
    ),
  );
}

/** @param {{head: Head, place: number, method: number, columns: Column[]}} props */
function QueryRow({ head, place, method, columns }) {
  return h(
    "tr",
    { role: "row", "data-entry": true, class: STATE["query"] === head.queries.ids[place] ? "chosen" : "" },
    columns.map((column) =>
      h(
        "td",
        { role: "cell", key: column.key, class: `${column.key}${column.isNumber ? " number" : ""}`, "data-label": column.short ?? column.title },
        queryCell(head, place, method, column.key),
      ),
    ),
  );
}

/**
 * @param {Head} head
 * @param {number} place
 * @param {number} method
 * @param {string} key
 * @returns {preact.ComponentChildren}
 */
function queryCell(head, place, method, key) {
  const { queries } = head;
  const id = queries.ids[place] ?? "";
  const prompt = queries.prompts[place] ?? null;
  const said = queries.said[place] ?? null;
  const right = queries.said_right[place] ?? null;
  switch (key) {
    case "query":
      return h(
        "a",
        { class: "words", href: href({ view: "query", query: id }), "data-step": true },
        prompt === null ? h("bdi", null, idText(id, queries.names[place] ?? null)) : h(Prompt, { text: prompt, answer: queries.answers[place] ?? null }),
      );
    case "answer":
      return h("bdi", { class: "words" }, plain(queries.answers[place] ?? ""));
    case "said":
      if (right === null) return h("bdi", { class: "words" }, plain(said ?? ""));
      return [h(Verdict, { right }), !right && [" ", h("bdi", { class: "words" }, said === null ? "" : plain(said))]];
    case "learned":
      return learnedCell(queries.learned_steps[place] ?? null, queries.states?.[place] ?? null);
    case "loss":
      return nats(queries.last_losses[place] ?? null);
    case "precision":
      return precisionCell(queries.precisions[method]?.[place] ?? null, bestPrecision(head, place));
    default:
      return percent(queries.disagreements[place] ?? null);
  }
}

/** @param {number | null} step @param {string | null} state */
function learnedCell(step, state) {
  if (state === "known") return step === 0 ? "before training" : ["known by ", stepText(step)];
  return state === "forgotten" ? [stepText(step), h("small", null, " forgotten")] : stepText(step);
}

/** @param {number | null} precision @param {number | null} best */
function precisionCell(precision, best) {
  return precision === null || best === null ? percent(precision) : [percent(precision), h("small", null, ` of ${percent(best)}`)];
}

VIEWS["queries"] = { title: "Queries", of: "report", show: (props) => h(QueriesView, props) };
