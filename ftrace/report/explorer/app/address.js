// @ts-check
/**
 * The state of the page, which its address holds as data after the "#".
 *
 * STATE            the current state: texts by name, "" where nothing is chosen
 * PARAMS           names that an address may have, and what values are known; a view may add its own
 * href(changes)    the address of the current state with changes, for links
 * go(changes)      go there; {replace: true} leaves no step to go back to
 * IGNORED          parts of the address that aren't known, which the page says
 */

/** @typedef {Record<string, string>} State */

/** Names in an address, each with what tells whether a value of it is known. @type {Record<string, (value: string, head: Head) => boolean>} */
const PARAMS = {
  view: (value) => Object.hasOwn(VIEWS, value),
  query: (value, head) => queryPlace(head, value) >= 0,
  method: (value, head) => methodKeys(head).includes(value),
  example: (value) => /^-?\d{1,20}$/.test(value),
  find: () => true,
  sort: (value, head) => sortKeys(head).includes(value),
  down: (value) => value === "yes" || value === "no",
  states: (value) => ["yes", "no", "said"].includes(value),
  kind: (value) => ["same subject", "same object", "same relation", "other"].includes(value),
  answered: (value) => value === "right" || value === "wrong",
};
const FACET = "facet.";

/** @type {State} */
let STATE = {};
/** @type {string[]} */
let IGNORED = [];

/** @type {WeakMap<Head, Map<Id, number>>} */
const PLACES = new WeakMap();

/**
 * Return the position of a query in the head's lists; -1 if there is no such query.
 * @param {Head} head
 * @param {Id} id
 */
function queryPlace(head, id) {
  let places = PLACES.get(head);
  if (places === undefined) {
    places = new Map(head.queries.ids.map((one, place) => [one, place]));
    PLACES.set(head, places);
  }
  return places.get(id) ?? -1;
}

/**
 * Return how an address calls each method: by its title, with its number where a title is not the only one of its kind.
 * @param {Head} head
 */
function methodKeys(head) {
  const titles = head.methods.map((method) => method.title);
  return titles.map((title, place) => (titles.indexOf(title) === place ? title : `${title} (${place + 1})`));
}

/**
 * Return the position of the chosen method, the first if none is chosen.
 * @param {Head} head
 */
function chosenMethod(head) {
  return Math.max(0, methodKeys(head).indexOf(STATE["method"] ?? ""));
}

/**
 * Read an address.
 * @param {string} hash
 * @param {Head} head
 * @returns {{state: State, ignored: string[]}}
 */
function readAddress(hash, head) {
  /** @type {State} */
  const state = {};
  const ignored = [];
  for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const isKnown = Object.hasOwn(PARAMS, name) && /** @type {any} */ (PARAMS[name])(value, head);
    const facet = name.startsWith(FACET) ? name.slice(FACET.length) : "";
    const values = facet && Object.hasOwn(head.queries.facets, facet) ? head.queries.facets[facet] : undefined;
    if (isKnown || values?.includes(value)) state[name] = value;
    else if (value !== "") ignored.push(`${name}=${value}`);
  }
  return { state, ignored };
}

/**
 * Return the current state with changes. An example is left behind with its query or view.
 * @param {State} changes
 */
function changed(changes) {
  const leaves = ("query" in changes && changes["query"] !== STATE["query"]) || "view" in changes;
  return { ...STATE, ...(leaves ? { example: "" } : {}), ...changes };
}

/** @param {State} state */
function writeAddress(state) {
  const known = Object.entries(state).filter(([name, value]) => value !== "" && !(name === "view" && value === "queries"));
  return `#${new URLSearchParams(known)}`;
}

/**
 * Return the address of the current state with changes.
 * @param {State} changes
 */
function href(changes) {
  return writeAddress(changed(changes));
}

/**
 * Go to the current state with changes.
 * @param {State} changes
 * @param {{replace?: boolean}} [how]  Whether it takes the place of the current address in the browser's history.
 */
function go(changes, { replace = false } = {}) {
  const address = href(changes);
  if (address === location.hash || (address === "#" && location.hash === "")) return;
  if (replace) {
    STATE = changed(changes);
    IGNORED = [];
    redraw();
    writeSoon(address);
  } else location.hash = address;
}

let writing = 0;

/** Write an address once a reader has stopped typing: browsers refuse many in a row. @param {string} address */
function writeSoon(address) {
  clearTimeout(writing);
  writing = setTimeout(() => location.replace(address), 250);
}
