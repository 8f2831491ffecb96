// @ts-check
/**
 * Which queries the address asks for, and in which order.
 *
 * chosenQueries(head)        positions of the queries that search and filters leave, in the chosen order
 * COLUMNS, queryColumns(head)   what the list of queries can be sorted by, and what of it a report has
 * sortKeys(head)             the names of these columns
 * bestPrecision(head, query) the highest P@10 that any method could reach, if that is less than all ten
 * filtersOf(head)            properties to filter by, with their values and how many queries have each
 */

/**
 * @typedef {object} Column
 * @property {string} key
 * @property {string} title
 * @property {string} [short]  What stands before its values where there is no room for a column.
 * @property {string} [meaning]
 * @property {boolean} isNumber
 * @property {boolean} isDown  Whether it is sorted from the largest down at first.
 * @property {(queries: QueryList, method: number) => (number | string | boolean | null)[] | undefined} values
 */

/** @type {Column[]} */
const COLUMNS = [
  { key: "query", title: "Query", isNumber: false, isDown: false, values: (queries) => queries.prompts },
  { key: "answer", title: "Answer", isNumber: false, isDown: false, values: (queries) => queries.answers },
  { key: "said", title: "The model said", isNumber: false, isDown: false, values: (queries) => queries.said_right },
  { key: "learned", title: "Learned at step", short: "learned", meaning: "The optimizer step at which the model first answered right", isNumber: true, isDown: false, values: (queries) => queries.learned_steps },
  { key: "loss", title: "Loss at the end", short: "loss", meaning: "In nats", isNumber: true, isDown: true, values: (queries) => queries.last_losses },
  { key: "precision", title: "P@10", meaning: "How many of the ten strongest examples state the query’s fact; “of 30%”: no method could reach more", isNumber: true, isDown: false, values: (queries, method) => queries.precisions[method] },
  { key: "disagreement", title: "Methods disagree", short: "disagreement", meaning: "The share of the ten strongest that two methods don’t have in common, on average", isNumber: true, isDown: true, values: (queries) => queries.disagreements },
];
/** How many queries a value must have on average, so that filtering by it is worth its place. */
const FEWEST_QUERIES = 3;

/**
 * Return the highest P@10 that any method could reach; null if it is 1 or not known, as in reports of earlier versions.
 * @param {Head} head
 * @param {number} query
 */
function bestPrecision({ queries }, query) {
  const best = queries.best_precisions?.[query] ?? null;
  return best !== null && best < 1 ? best : null;
}

/** @param {Head} head */
function sortKeys(head) {
  return queryColumns(head, chosenMethod(head)).map((column) => column.key);
}

/**
 * Return the columns of which anything is known.
 * @param {Head} head
 * @param {number} method
 */
function queryColumns({ queries }, method) {
  const isKnown = (/** @type {Column} */ column) =>
    column.key === "query" ||
    column.values(queries, method)?.some((value) => value !== null) ||
    (column.key === "precision" && queries.precisions.some((values) => values.some((value) => value !== null))) ||
    (column.key === "said" && queries.said.some((text) => text !== null));
  return COLUMNS.filter(isKnown);
}

/** @typedef {{name: string, title: string, values: Map<string, number>}} Filter */

/** @type {WeakMap<Head, Filter[]>} */
const FILTERS = new WeakMap();

/**
 * Return what queries can be filtered by: properties with few values.
 * @param {Head} head
 */
function filtersOf(head) {
  let filters = FILTERS.get(head);
  if (filters === undefined) {
    filters = [];
    for (const [name, values] of Object.entries(head.queries.facets)) {
      const counts = countsOf(values);
      if (counts.size > 1 && counts.size * FEWEST_QUERIES <= values.length) filters.push({ name: FACET + name, title: capitalized(name.replaceAll("_", " ")), values: counts });
    }
    FILTERS.set(head, filters);
  }
  return filters;
}

/** @param {string} text */
function capitalized(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

/** @param {(string | null)[]} values */
function countsOf(values) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const value of values) if (value !== null) counts.set(value, (counts.get(value) ?? 0) + 1);
  return new Map([...counts].sort(([a], [b]) => a.localeCompare(b)));
}

/** @type {WeakMap<Head, string[]>} */
const SEARCHED = new WeakMap();

/**
 * Return the text of each query that a search looks through.
 * @param {Head} head
 */
function searchedTexts(head) {
  let texts = SEARCHED.get(head);
  if (texts === undefined) {
    const { ids, names, prompts, answers, said } = head.queries;
    texts = ids.map((id, place) =>
      folded([`#${id}`, names[place], prompts[place], answers[place], said[place]].filter(Boolean).join("\n")),
    );
    SEARCHED.set(head, texts);
  }
  return texts;
}

/** @type {{head: Head | null, asked: string, places: number[]}} */
let LAST_CHOICE = { head: null, asked: "", places: [] };

/**
 * Return the positions of the queries that search and filters leave, in the chosen order.
 * @param {Head} head
 */
function chosenQueries(head) {
  const names = ["find", "sort", "down", "answered", "method", ...filtersOf(head).map((filter) => filter.name)];
  const asked = JSON.stringify(names.map((name) => STATE[name] ?? ""));
  if (LAST_CHOICE.head !== head || LAST_CHOICE.asked !== asked) {
    LAST_CHOICE = { head, asked, places: sorted(head, filtered(head)) };
  }
  return LAST_CHOICE.places;
}

/**
 * Return the order in which a reader goes from query to query: the chosen one, or all if this query isn't chosen.
 * @param {Head} head
 * @param {number} query
 */
function readingOrder(head, query) {
  const chosen = chosenQueries(head);
  return chosen.includes(query) ? chosen : [...head.queries.ids.keys()];
}

/**
 * Return the queries before and after one in the reading order.
 * @param {Head} head
 * @param {number} query
 */
function neighbours(head, query) {
  const order = readingOrder(head, query);
  const at = order.indexOf(query);
  return [order[at + 1], order[at - 1]].filter((place) => place !== undefined);
}

/** @param {Head} head */
function filtered(head) {
  const words = folded(STATE["find"] ?? "").split(" ").filter(Boolean);
  const texts = words.length > 0 ? searchedTexts(head) : [];
  const filters = filtersOf(head).filter((filter) => STATE[filter.name]);
  const { queries } = head;
  const answered = STATE["answered"];
  return [...queries.ids.keys()].filter(
    (place) =>
      words.every((word) => texts[place]?.includes(word)) &&
      (!answered || queries.said_right[place] === (answered === "right")) &&
      filters.every(({ name }) => queries.facets[name.slice(FACET.length)]?.[place] === STATE[name]),
  );
}

/**
 * @param {Head} head
 * @param {number[]} places
 */
function sorted(head, places) {
  const column = COLUMNS.find(({ key }) => key === STATE["sort"]);
  const values = column?.values(head.queries, chosenMethod(head));
  if (column === undefined || values === undefined) return places;
  const sign = isDown(column) ? -1 : 1;
  const number = (/** @type {number | string | boolean} */ value) =>
    column.key === "learned" && value === -1 ? Infinity : Number(value);
  const compare = (/** @type {any} */ a, /** @type {any} */ b) =>
    column.isNumber || typeof a === "boolean" ? number(a) - number(b) || 0 : a.localeCompare(b);
  const known = places.filter((place) => (values[place] ?? null) !== null);
  known.sort((a, b) => sign * compare(values[a], values[b]) || a - b);
  return [...known, ...places.filter((place) => (values[place] ?? null) === null)];
}

/** @param {Column} column */
function isDown(column) {
  return STATE["sort"] === column.key && STATE["down"] ? STATE["down"] === "yes" : column.isDown;
}
