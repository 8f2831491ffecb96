// @ts-check
/**
 * The words for what a reader sees: what each kind of scores says, and a small glossary.
 *
 * kindText(method)     what scores of its kind say, in a sentence or two
 * sideText(...)        what makes an example a proponent or an opponent, as far as its kind tells
 * HowToRead(props)     the glossary
 */

/** The kind of scores that compare words, and know nothing of training. */
const BY_WORDS = "bm25";
/** Kinds that estimate a fall of the loss; others compare directions, or are not known. */
const OF_LOSSES = ["learning", "update", "dot"];

/** @type {Record<string, string>} */
const KINDS = {
  learning: "Each training step counts while the query is being learned. This score is there to rank by, and has no unit.",
  update: "By how many nats the optimizer’s actual steps on the example lowered the query’s loss, to first order.",
  dot: "Products of the plain gradients of example and query: how much plain gradient descent on the example would lower the query’s loss, to first order.",
  cosine: "Only the directions of the gradients of example and query are compared. Their sizes don’t count, and the score has no unit.",
  whitened: "Only the directions of the gradients are compared, after what all examples have in common was made small. Sizes don’t count, and the score has no unit.",
  bm25: "How much of the query’s wording the example has. It knows nothing of training.",
};

/**
 * Return the kind by which a method's scores are explained; "" if nothing is known of it.
 * @param {Method | undefined} method
 */
function knownKind(method) {
  const kind = method?.kind ?? "";
  if (Object.hasOwn(KINDS, kind)) return kind;
  return kind.startsWith("cosine.") || kind === "tensor_cosine" ? "cosine" : "";
}

/** @param {Method | undefined} method */
function kindText(method) {
  const known = knownKind(method);
  const times = method?.title.toLowerCase().startsWith("tracin") ? " Taken at saved snapshots of the model, and not at each step." : "";
  if (known !== "") return `${KINDS[known]}${times}`;
  if (method?.kind) return `Scores of the kind “${plain(method.kind)}”${method.unit ? `, in ${plain(method.unit)}` : ""}.${times}`;
  return `What the search ranked by: its results don’t say which kind of score this is.${times}`;
}

/**
 * Say what makes an example a proponent or an opponent.
 * @param {Method | undefined} method
 * @param {boolean} isOpponents
 */
function sideText(method, isOpponents) {
  const known = knownKind(method);
  if (known === BY_WORDS) return isOpponents ? "" : "they share the most telling words";
  if (known === "") return isOpponents ? "negative scores" : "the largest scores";
  if (OF_LOSSES.includes(known)) return isOpponents ? "they raised the loss" : "they lowered the loss";
  return isOpponents ? "their gradients point the other way" : "their gradients point the same way as the query’s";
}

/** @type {[string, string][]} */
const TERMS = [
  ["Positive", "means a proponent: the example lowered the query’s loss, so it made the right answer likelier. Negative means an opponent."],
  ["A rank", "is 1 plus the number of examples with a larger score. “=3” says that other examples have the very same score; their order in a list, by id, means nothing."],
  ["A share", "is the score as a part of the query’s largest. It compares examples of one query and one method, not queries or methods."],
  ["States the fact", "means that the example says what the query asks, by the data’s own labels. An example without the mark may teach the fact in other words, or help for reasons that no label names. An opponent may state the fact, too: it may use another accepted name of the answer, and the names compete."],
  ["Same subject, same object", "speak of the fact as the data states it. A prompt may ask in either direction: what it asks for may be the fact’s object or its subject."],
  ["P@1, P@10", "are the shares of the strongest 1 and 10 examples that state the query’s fact. “30% of 30%” says that no method could reach more than 30%, because few examples state the fact."],
  ["MRR", "is 1 divided by the rank of the first example that states the fact, on average over queries."],
  ["R@10, R@n", "are the shares of all examples that state the fact which are among the strongest 10, or the strongest n, where n is their number."],
  ["Methods disagree", "is the share of the ten strongest examples that two methods don’t have in common, on average over pairs of methods."],
  ["Before, after learned", "cuts training at the step at which the query was first answered right: all is “after” for one that was right before training, and stays “after” for one that is forgotten later. “learning” counts mainly where the answer is becoming right: its weight is small while the answer is very unlikely, and small again once it is sure."],
  ["Likely contradictions", "An example that BM25 ranks first and that training’s scores rank last often contradicts the query: it has the same words and says something else."],
  ["Not listed", "means weaker than the strongest that are kept, not without effect: many weak examples together can outweigh the strongest."],
];

/** @param {{head: Head}} props */
function HowToRead({ head }) {
  const units = [...new Set(head.methods.map(({ unit }) => unit).filter(Boolean))].map(plain);
  /** @type {[string, string][]} */
  const scores = [
    ["A score", `says what training on an example did to a query’s loss, to first order: as if each step were small and nothing else changed.${units.length > 0 ? ` Where it has a unit, ${units.join(" or ")}, a score of 0.1 is an estimate that the loss fell by 0.1.` : ""} It is an estimate, and no proof that the example caused the answer. Some kinds of scores say something else:`],
    ...methodKeys(head).map((key, method) => /** @type {[string, string]} */ ([plain(key), kindText(head.methods[method])])),
  ];
  const terms = [...scores, ...TERMS];
  return h("section", { class: "how", "aria-label": "How to read this" }, h("h2", null, "How to read this"), h("dl", null, terms.map(([term, text], at) => h("div", { key: at }, h("dt", null, h("bdi", null, term)), h("dd", null, text)))));
}
