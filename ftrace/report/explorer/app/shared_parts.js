// @ts-check
/**
 * Parts that several views use.
 *
 * MethodChoice(props)    by which method the lists are: links, or a list to choose from if there are many
 * Choice(props)          a labelled <select> that writes one name of the address
 * ScoreBar(props)        a bar of a share: filled to the right for positive ones, hollow for negative ones
 * ExampleLink(props)     an example's id or name, linked to its page; j and k stop there, if not at its text
 * ExampleText(props)     an example's text, linked to its page, and the answer of its own
 * QueryLink(props)       a query by its position, linked to its view
 * Problems(props)        sentences that say what is doubtful, each with a sign
 * Facts(props)           names and values as a list of terms
 */

const MOST_LINKS = 4;

/** @param {{head: Head, method: number}} props */
function MethodChoice({ head, method }) {
  const keys = methodKeys(head);
  if (keys.length < 2) return h("p", { class: "methods" }, "Scores by ", h("b", null, plain(keys[0] ?? "no method")));
  if (keys.length > MOST_LINKS) {
    return h(Choice, { label: "Scores by", name: "method", value: keys[method] ?? "", options: keys.map((key) => /** @type {[string, string]} */ ([key, plain(key)])) });
  }
  return h(
    "nav",
    { class: "methods", "aria-label": "Scores by" },
    h("span", { class: "label" }, "Scores by"),
    keys.map((key, place) =>
      h("a", { href: href({ method: key }), "aria-current": place === method ? "true" : undefined, key }, plain(key)),
    ),
  );
}

/** @param {{label: string, name: string, value: string, options: [string, string][]}} props */
function Choice({ label, name, value, options }) {
  return h(
    "label",
    { class: "choice" },
    h("span", { class: "label" }, label),
    h(
      "select",
      { value, onChange: (/** @type {Event} */ event) => go({ [name]: /** @type {HTMLSelectElement} */ (event.target).value }, { replace: true }) },
      options.map(([key, text]) => h("option", { value: key, key, selected: key === value }, text)),
    ),
  );
}

/** @param {{share: number | null}} props */
function ScoreBar({ share }) {
  const width = `${Math.min(1, Math.abs(share ?? 0)) * 100}%`;
  const sign = (share ?? 0) < 0 ? "minus" : "plus";
  return h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: sign, style: { width } }));
}

/** @param {{id: Id, name: string | null, isStep: boolean}} props */
function ExampleLink({ id, name, isStep }) {
  return h("a", { class: "id", href: href({ view: "example", example: id }), "data-step": isStep || undefined }, h("bdi", null, idText(id, name)));
}

/** @param {{chunk: QueryChunk, example: Example, limit: number}} props */
function ExampleText({ chunk, example, limit }) {
  const { id, text, shared, cut, answer } = example;
  if (text === null) return null;
  return h(Fragment, null, h(Words, { text, spans: shared, cut, limit, fill: answer, link: href({ view: "example", example: id }) }), h(OwnAnswer, { chunk, example }));
}

/**
 * Return an example's answer if its text doesn't show it.
 * @param {Example} example
 */
function ownAnswer({ text, answer }) {
  return answer === null || (text !== null && (text.search(BLANK) >= 0 || hasWords(text, answer))) ? null : answer;
}

/** An example's answer where its text doesn't show it, and whether it is another than the query's. @param {{chunk: QueryChunk, example: Example}} props */
function OwnAnswer({ chunk, example }) {
  const answer = ownAnswer(example);
  if (answer === null) return null;
  const right = [chunk.answer, ...chunk.accepted].flatMap((known) => (known === null ? [] : [folded(known).trim()]));
  const isAnother = chunk.answer !== null && !right.includes(folded(answer).trim());
  return h(
    "span",
    { class: "own-answer" },
    h("span", { "aria-hidden": "true" }, " → "),
    h("span", { class: "unseen" }, " answer: "),
    h("bdi", { class: "words" }, plain(answer)),
    isAnother && h("small", null, " – not the query’s answer"),
  );
}

/** @param {{head: Head, place: number}} props */
function QueryLink({ head, place }) {
  const id = head.queries.ids[place] ?? "";
  const prompt = head.queries.prompts[place] ?? null;
  const link = href({ view: "query", query: id });
  if (prompt === null) return h("a", { href: link }, h("bdi", null, idText(id, head.queries.names[place] ?? null)));
  return h("a", { class: "words", href: link }, h(Prompt, { text: prompt, answer: head.queries.answers[place] ?? null }));
}

/** @param {{texts: string[]}} props */
function Problems({ texts }) {
  if (texts.length === 0) return null;
  return h("ul", { class: "problems" }, texts.map((text, place) => h("li", { key: place }, h("bdi", null, plain(text)))));
}

/** @param {{facts: [string, string][]}} props */
function Facts({ facts }) {
  return h(
    "dl",
    { class: "facts" },
    facts.flatMap(([name, value], place) => [
      h("dt", { key: `${place} name` }, h("bdi", null, plain(name))),
      h("dd", { key: place }, h("bdi", null, plain(value))),
    ]),
  );
}
