// @ts-check
/**
 * The view of all queries: search, filters, and a table that any column sorts.
 *
 * sortKeys(head)         names of the columns that an address may sort by
 * chosenQueries(head)    positions of the queries that search and filters leave, in the chosen order
 */

/** @param {Head} head */
function sortKeys(head) {
  return ["query", "answer", "said", "loss", "learned", "precision", "disagreement"];
}

/** @param {Head} head */
function chosenQueries(head) {
  return head.queries.ids.map((_, place) => place);
}

VIEWS["queries"] = {
  title: "Queries",
  of: "report",
  show: ({ head }) => h("ol", null, chosenQueries(head).map((place) => h("li", { key: place }, h(QueryLink, { head, place })))),
};
