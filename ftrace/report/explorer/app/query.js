// @ts-check
/**
 * A query: Pager(props) and QueryHead(props), which stand above each of its views, and the view of its strongest examples.
 *
 * Verdict({right})   "✓ right" or "✗ wrong"
 */

/** @param {ViewProps} props */
function QueryHead({ head, chunk }) {
  const answered = chunk.answered ?? null;
  return h(
    "div",
    { class: "query-head" },
    h(
      "div",
      { class: "query-top" },
      h(
        "div",
        { class: "asked" },
        h("p", { class: "kicker" }, kicker(chunk).map(([name, value]) => h("span", { key: name }, name, " ", h("bdi", null, plain(value))))),
        h("h1", { class: chunk.prompt !== null && chunk.prompt.length > 160 ? "long" : "" }, chunk.prompt === null ? h("bdi", null, idText(chunk.id, chunk.name)) : h(Prompt, { text: chunk.prompt, answer: chunk.answer, cut: chunk.cut })),
        h("dl", { class: "answers" }, chunk.answer !== null && h(Answer, { chunk }), chunk.said !== null && h(SaidPart, { said: chunk.said, isRedacted: head.is_redacted })),
        h(Problems, { texts: chunk.warnings }),
        h(NoteField, { head, query: chunk.id, on: "this query", key: chunk.id }),
      ),
      (chunk.loss !== null || answered !== null) &&
        h(
          "div",
          { class: "learning" },
          h("dl", { class: "answers" }, h(LearnedPart, { loss: chunk.loss, answered })),
          chunk.loss !== null && h(LossChart, { loss: chunk.loss, answered }),
        ),
    ),
    h(Tabs, { head, chunk }),
  );
}

/** @param {QueryChunk} chunk @returns {[string, string][]} */
function kicker(chunk) {
  const called = chunk.prompt === null ? [] : /** @type {[string, string][]} */ ([["query", idText(chunk.id, chunk.name)]]);
  return [...called, ...chunk.properties.map(([name, value]) => /** @type {[string, string]} */ ([plain(name.replaceAll("_", " ")), value]))];
}

/** @param {{head: Head, query: number}} props */
function Pager({ head, query }) {
  const order = readingOrder(head, query);
  const at = order.indexOf(query);
  const link = (/** @type {number} */ place, /** @type {string} */ key, /** @type {string} */ text) => {
    const id = head.queries.ids[order[place] ?? -1];
    return id === undefined ? h("span", { class: "soft", "aria-hidden": "true" }, text) : h("a", { href: href({ query: id }), "data-key": key, rel: key === "left" ? "prev" : "next" }, text);
  };
  return h(
    "nav",
    { class: "pager", "aria-label": "Queries" },
    h("a", { href: href({ view: "queries" }), "data-key": "up" }, "All queries"),
    h("span", { class: "soft" }, `${count(at + 1)} of ${count(order.length)}`),
    link(at - 1, "left", "← previous"),
    link(at + 1, "right", "next →"),
  );
}

/** @param {{chunk: QueryChunk}} props */
function Answer({ chunk }) {
  return h(
    "div",
    null,
    h("dt", null, isKnownRight(chunk) ? "Right answer" : "Answer"),
    h("dd", null, h("bdi", { class: "words" }, plain(chunk.answer ?? "")), chunk.accepted.length > 0 && h("small", null, "also accepted: ", h("bdi", null, chunk.accepted.map(plain).join("; ")))),
  );
}

/** Tell whether the data says that a query's answer is right: results of a search only say which one was searched for. @param {QueryChunk} chunk */
function isKnownRight({ said, accepted, examples }) {
  return (said?.right ?? null) !== null || accepted.length > 0 || examples.some((example) => example.states_fact !== null);
}

/** @param {{said: Said, isRedacted: boolean}} props */
function SaidPart({ said, isRedacted }) {
  return h(
    "div",
    { class: said.right === false ? "wrong" : "" },
    h("dt", null, "The model said"),
    h(
      "dd",
      null,
      said.text === null ? (isRedacted ? "(left out)" : "(no end to its answer)") : h("bdi", { class: "words" }, plain(said.text)),
      h(
        "small",
        null,
        said.right !== null && h(Verdict, { right: said.right }),
        said.probability !== null && h("span", null, `probability ${percent(said.probability)}`),
        said.snapshot !== "" && h("span", null, "at ", h("bdi", null, snapshotText(said.snapshot))),
      ),
    ),
  );
}

/** @param {{loss: Loss | null, answered: Answered | null}} props */
function LearnedPart({ loss, answered }) {
  return h(
    "div",
    null,
    h("dt", null, "Learned"),
    h(
      "dd",
      null,
      answered === null ? "not known" : answered.text,
      loss !== null && h("small", null, `loss ${lossText(loss.values[0] ?? null, loss.values[loss.values.length - 1] ?? null)} nats`),
    ),
  );
}

/** @param {{right: boolean}} props */
function Verdict({ right }) {
  return h("span", { class: `verdict ${right ? "right" : "wrong"}` }, h("span", { "aria-hidden": "true" }, right ? "✓ " : "✗ "), right ? "right" : "wrong");
}

/** @param {{head: Head, chunk: QueryChunk}} props */
function Tabs({ head, chunk }) {
  const views = Object.entries(VIEWS).filter(([, view]) => view.of === "query" && !view.isEmpty?.(head, chunk));
  if (views.length < 2) return null;
  return h(
    "nav",
    { class: "tabs", "aria-label": "Views of this query" },
    views.map(([name, view]) => h("a", { key: name, href: href({ view: name }), "aria-current": STATE["view"] === name ? "page" : undefined }, view.title)),
  );
}

/** @param {ViewProps} props */
function QueryView({ head, chunk, method, query }) {
  const doubts = head.methods[method]?.doubts ?? [];
  return h(
    Fragment,
    null,
    h("div", { class: "filters" }, h(MethodChoice, { head, method }), h(FactFilter, { chunk }), h(KindFilter, { chunk })),
    h(Problems, { texts: doubts }),
    h("p", { class: "reading" }, kindText(head.methods[method]), " The bar is its share of the largest. ", precisionText(head, method, query), Object.hasOwn(VIEWS, "run") && h("a", { href: href({ view: "run" }) }, "How to read and test it")),
    h("div", { class: "sides" }, h(ExampleList, { head, chunk, method, isOpponents: false }), h(ExampleList, { head, chunk, method, isOpponents: true })),
  );
}

/** @param {Head} head @param {number} method @param {number} query */
function precisionText(head, method, query) {
  const precision = head.queries.precisions[method]?.[query] ?? null;
  const best = bestPrecision(head, query);
  if (precision === null) return "";
  return `P@10: ${percent(precision)}${best === null ? "" : ` of the ${percent(best)} that any method could reach`}. `;
}

/** @param {{chunk: QueryChunk}} props */
function FactFilter({ chunk }) {
  const { options, value } = factFilter(chunk);
  return options.length === 0 ? null : h(Choice, { label: options.some(([key]) => key === "yes") ? "States the fact" : "States", name: "states", value, options: [["", "all"], ...options] });
}

/** @param {{chunk: QueryChunk}} props */
function KindFilter({ chunk }) {
  const { options, value } = kindFilter(chunk);
  return options.length === 0 ? null : h(Choice, { label: "Shares", name: "kind", value, options: [["", "all"], ...options] });
}

VIEWS["query"] = { title: "Examples", of: "query", show: (props) => h(QueryView, props) };
