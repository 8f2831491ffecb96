// @ts-check
/**
 * A list of training examples, strongest first: ExampleList(props). Near-duplicates are folded into the first of them.
 */

const TEXT_LIMIT = 320;
/** The most examples of a side that are printed. */
const ON_PAPER = { proponents: 20, opponents: 10 };

/**
 * @typedef {object} ExampleListProps
 * @property {Head} head
 * @property {QueryChunk} chunk
 * @property {number} method
 * @property {boolean} isOpponents
 */

/** @param {ExampleListProps} props */
function ExampleList({ head, chunk, method, isOpponents }) {
  const lists = chunk.lists[method];
  const listed = (isOpponents ? lists?.opponents : lists?.proponents) ?? [];
  const asked = { states: factFilter(chunk).value, kind: kindFilter(chunk).value };
  const kept = listed.filter((place) => fits(chunk, chunk.examples[place], asked));
  const scores = listed.map((place) => chunk.examples[place]?.places[method]?.score ?? null);
  const largest = largestOf(scores);
  const groups = groupsOf(kept, chunk.examples);
  const most = ON_PAPER[isOpponents ? "opponents" : "proponents"];
  const onPaper = new Set(groups.flat().slice(0, most));
  return h(
    "section",
    { class: isOpponents ? "opponents" : "proponents", "aria-label": isOpponents ? "Opponents" : "Proponents" },
    h("h2", null, isOpponents ? "Opponents" : "Proponents", " ", h("small", null, sideText(head.methods[method], isOpponents))),
    kept.length < listed.length && h("p", { class: "count", role: "status" }, `${count(kept.length)} of the ${count(listed.length)} that are listed`),
    listed.length === 0 && h("p", { class: "empty" }, emptyText(head, lists ?? null, method, isOpponents)),
    h(Growing, {
      tag: "ol",
      attributes: { class: "examples" },
      asked: [chunk.id, method, asked.states, asked.kind].join(" "),
      least: groups.findIndex((group) => group.some((place) => chunk.examples[place]?.id === STATE["example"])) + 1,
      entries: groups,
      show: (/** @type {number[]} */ group) => h(Entry, { key: group[0], head, chunk, method, isOpponents, group, largest, onPaper }),
    }),
    kept.length > most && h("p", { class: "count on-paper" }, `The first ${most} of ${count(kept.length)} that the page lists.`),
    kept.length > 0 && listNotes(lists ?? null, listed.length, isOpponents).map((note) => h("p", { class: "count", key: note }, note)),
  );
}

/**
 * Put near-duplicates together, each group where its first one stands.
 * @param {number[]} places
 * @param {Example[]} examples
 */
function groupsOf(places, examples) {
  /** @type {Map<number, number[]>} */
  const groups = new Map();
  for (const place of places) {
    const first = examples[place]?.alike ?? place;
    groups.set(first, [...(groups.get(first) ?? []), place]);
  }
  return [...groups.values()];
}

/**
 * What a query's examples can be filtered by, and what the address asks for. A choice that was made for another query, and
 * that this one doesn't offer, leaves its lists whole: there would be nothing to undo it with.
 * @typedef {{options: [string, string][], value: string}} ExampleFilter
 */

/** @param {[string, string][]} options @param {string | undefined} value @returns {ExampleFilter} */
function offered(options, value) {
  return { options, value: value !== undefined && options.some(([key]) => key === value) ? value : "" };
}

/** @param {QueryChunk} chunk */
function factFilter(chunk) {
  /** @type {[string, string][]} */
  const options = [];
  if (chunk.examples.some((example) => example.states_fact !== null)) options.push(["yes", "yes"], ["no", "no"]);
  if (chunk.examples.some((example) => hasWrongAnswer(chunk, example))) options.push(["said", "the wrong answer"]);
  return offered(options, STATE["states"]);
}

/** @param {QueryChunk} chunk */
function kindFilter(chunk) {
  const kinds = /** @type {const} */ (["same subject", "same object", "same relation", "other"]).filter((kind) => chunk.examples.some((example) => example.kind === kind));
  return offered(kinds.map((kind) => [kind, kind]), STATE["kind"]);
}

/**
 * @param {QueryChunk} chunk
 * @param {Example | undefined} example
 * @param {{states: string, kind: string}} asked
 */
function fits(chunk, example, { states, kind }) {
  if (example === undefined) return false;
  const isAsked = states === "said" ? hasWrongAnswer(chunk, example) : example.states_fact === (states === "yes");
  return (!states || isAsked) && (!kind || example.kind === kind);
}

/**
 * Tell whether the model's wrong answer stands in an example, or is its own.
 * @param {QueryChunk} chunk
 * @param {Example} example
 */
function hasWrongAnswer({ said }, example) {
  const wrong = said?.right === false ? (said.text?.trim() ?? "") : "";
  if (wrong === "") return false;
  return [example.text, ownAnswer(example)].some((text) => text !== null && folded(text).includes(folded(wrong)));
}

/**
 * @param {Head} head
 * @param {Lists | null} lists
 * @param {number} method
 * @param {boolean} isOpponents
 */
function emptyText(head, lists, method, isOpponents) {
  if (lists === null) return "This method has no scores for the query.";
  if (!isOpponents) return "No example is ranked.";
  if (lists.opponents === null || !head.methods[method]?.has_opponents) return "This method knows no opponents.";
  return "None: no score is negative.";
}

/**
 * Say what a list leaves out or takes in, where a reader would be misled.
 * @param {Lists | null} lists
 * @param {number} listed
 * @param {boolean} isOpponents
 */
function listNotes(lists, listed, isOpponents) {
  if (lists === null) return [];
  const notes = [];
  const more = isOpponents ? lists.more_opponents_like_last : lists.more_proponents_like_last;
  if (more > 0) notes.push(`${count(more)} more ${more === 1 ? "has" : "have"} the score of the last one.`);
  const signed = isOpponents ? lists.negative : lists.positive;
  if (!isOpponents && signed !== null && signed < listed) {
    notes.push(`${signed === 0 ? "None" : `Only ${count(signed)}`} of these scores ${signed === 1 ? "is" : "are"} positive; no other is a proponent’s.`);
  } else if (signed !== null && lists.candidates !== null && signed > listed) {
    notes.push(`${count(signed)} of ${counted(lists.candidates, "example")} have a ${isOpponents ? "negative" : "positive"} score.`);
  }
  return notes;
}

/** @typedef {ExampleListProps & {group: number[], largest: number, onPaper: Set<number>}} EntryProps */

/** @extends {preact.Component<EntryProps, {isOpen: boolean}>} */
class Entry extends Component {
  state = { isOpen: false };

  render() {
    const { group, chunk, onPaper } = this.props;
    const [first, ...others] = group;
    const paper = (/** @type {number | undefined} */ place) => (place === undefined || onPaper.has(place) ? undefined : "off-paper");
    const isOpen = this.state.isOpen || others.some((/** @type {number} */ place) => chunk.examples[place]?.id === STATE["example"]);
    return h(
      "li",
      { class: paper(first) },
      h(EntryBody, { ...this.props, place: first ?? 0 }),
      others.length > 0 &&
        h(
          "div",
          { class: "alike" },
          h(
            "button",
            { type: "button", class: "quiet fold", "aria-expanded": isOpen, onClick: () => this.setState({ isOpen: !isOpen }) },
            `${isOpen ? "hide" : "show"} ${counted(others.length, "near-duplicate")}`,
          ),
          h("ol", { class: "examples", hidden: !isOpen }, others.map((/** @type {number} */ place) => h("li", { key: place, class: paper(place) }, h(EntryBody, { ...this.props, place })))),
        ),
    );
  }
}

/** @param {EntryProps & {place: number}} props */
function EntryBody({ head, chunk, method, isOpponents, place, largest }) {
  const example = /** @type {Example} */ (chunk.examples[place]);
  const at = example.places[method] ?? null;
  const rank = isOpponents ? (at?.rank_from_below ?? null) : (at?.rank ?? null);
  const called = idText(example.id, example.name);
  const isChosen = STATE["example"] === example.id;
  return h(
    "article",
    { class: `entry${isChosen ? " chosen" : ""}`, "data-entry": true, "aria-label": called, ref: isChosen ? scrollOnce : null },
    h("a", { class: "rank", href: href({ example: isChosen ? "" : example.id }), title: "link to this place" }, rankText(rank, at?.ties ?? 0)),
    h(
      "div",
      { class: "text" },
      example.text === null
        ? h(ExampleLink, { id: example.id, name: example.name, isStep: true })
        : h(ExampleText, { chunk, example, limit: TEXT_LIMIT }),
    ),
    h(
      "div",
      { class: "meta" },
      h("span", { class: "score" }, scoreText(at?.score ?? null, largest)),
      h(ScoreBar, { share: at?.share ?? null }),
      h("span", { class: "share" }, percent(at?.share ?? null)),
      h(FactMark, { example }),
      hasWrongAnswer(chunk, example) && h("span", { class: "fact said" }, h("span", { "aria-hidden": "true" }, "✗ "), "has the wrong answer"),
      example.text !== null && h(ExampleLink, { id: example.id, name: example.name, isStep: false }),
      h(NoteField, { head, query: chunk.id, example: example.id, on: called }),
    ),
  );
}

/** @type {string} */
let scrolledTo = "";

/** Bring the example that the address names into view, once for each address. @param {HTMLElement | null} entry */
function scrollOnce(entry) {
  const address = `${STATE["query"]} ${STATE["example"]}`;
  if (entry === null || scrolledTo === address) return;
  scrolledTo = address;
  requestAnimationFrame(() => entry.scrollIntoView({ block: "center" }));
}

/** @param {{example: Example}} props */
function FactMark({ example }) {
  if (example.states_fact === true) return h("span", { class: "fact states" }, h("span", { "aria-hidden": "true" }, "● "), "states the fact");
  if (example.kind === null && example.states_fact === null) return null;
  return h("span", { class: "fact" }, h("span", { "aria-hidden": "true" }, "○ "), example.kind === null || example.kind === "other" ? "another fact" : example.kind);
}
