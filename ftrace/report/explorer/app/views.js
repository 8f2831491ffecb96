// @ts-check
/**
 * The views, each of which adds itself: VIEWS["compare"] = {title: "Compare", of: "query", show: (props) => ...}.
 *
 * of: "report"   it stands in the navigation of the page;
 *     "query"    it stands among the tabs of a query, below the query's head, and has its chunk;
 *     "example"  it is reached by links (STATE.example) and loads what it needs with `Loaded`.
 * isEmpty        optional, for views of a query: tells that there is nothing to show, so that its tab is left out
 */

/**
 * @typedef {object} ViewProps
 * @property {Head} head
 * @property {State} state
 * @property {number} method  Position of the chosen method.
 * @property {number} query  Position of the chosen query; -1 if there is none.
 * @property {QueryChunk} chunk  Of the chosen query; only in views of a query.
 */

/**
 * @typedef {object} View
 * @property {string} title
 * @property {"report" | "query" | "example"} of
 * @property {(props: ViewProps) => preact.ComponentChildren} show
 * @property {(head: Head, chunk: QueryChunk) => boolean} [isEmpty]
 */

/** @type {Record<string, View>} */
const VIEWS = {};
