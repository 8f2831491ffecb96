// @ts-check
/**
 * The keyboard. A view marks what j and k (or the arrows) move through with the attribute `data-step`; Enter opens it,
 * since it is a link. Elements with `data-key="left"` and so on are links that a key follows.
 *
 * KEYS          what the page's help lists
 * startKeys()   begins to listen
 */

/** @type {[string, string][]} */
const KEYS = [
  ["j, k or ↓, ↑", "next, previous entry of the list"],
  ["Enter", "open it"],
  ["→, ←", "next, previous query"],
  ["Esc or u", "up: from an example to its query, from there to all queries"],
  ["/", "search the queries"],
  ["t", "light or dark"],
  ["?", "show or hide the keys"],
];

const FOLLOWED = { ArrowLeft: "left", ArrowRight: "right", Escape: "up", u: "up" };
const STEPS = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.closest("input, textarea, select, [contenteditable]") !== null) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (isScrolled(target, event.key)) return;
    if (isUsed(event.key)) event.preventDefault();
  });
}

/**
 * Tell whether the browser scrolls by a key: a wide table that has the focus, to its sides.
 * @param {HTMLElement} target
 * @param {string} key
 */
function isScrolled(target, key) {
  return (key === "ArrowLeft" || key === "ArrowRight") && target.matches(".scroll") && target.scrollWidth > target.clientWidth;
}

/**
 * Do what a key stands for, and tell whether it stands for anything here.
 * @param {string} key
 */
function isUsed(key) {
  if (key === "Escape" && HELP.isOpen) return toggleHelp();
  if (key === "?") return toggleHelp();
  if (key === "t") return nextTheme();
  if (key === "/") return searchQueries();
  if (Object.hasOwn(STEPS, key)) return step(STEPS[/** @type {keyof typeof STEPS} */ (key)]);
  if (Object.hasOwn(FOLLOWED, key)) return follow(FOLLOWED[/** @type {keyof typeof FOLLOWED} */ (key)]);
  return false;
}

/** @param {string} name */
function follow(name) {
  const link = document.querySelector(`a[data-key="${name}"]`);
  if (link instanceof HTMLAnchorElement) link.click();
  return link !== null;
}

/** @param {number} by */
function step(by) {
  const places = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-step]")]).filter((place) => place.checkVisibility());
  if (places.length === 0) return false;
  const active = document.activeElement;
  let at = places.findIndex((place) => place === active);
  if (at < 0 && active !== null && active !== document.body) {
    const entry = active.closest("[data-entry]");
    at = entry === null ? -1 : places.findIndex((place) => entry.contains(place));
  }
  const next = places[at < 0 ? firstSeen(places) : Math.min(places.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.closest("[data-entry]")?.scrollIntoView({ block: "nearest" });
  return true;
}

/** @param {HTMLElement[]} places */
function firstSeen(places) {
  return Math.max(0, places.findIndex((place) => place.getBoundingClientRect().top >= 0));
}

function searchQueries() {
  const focus = () => document.getElementById("find")?.focus();
  if ((STATE["view"] ?? "queries") === "queries") focus();
  else {
    addEventListener("hashchange", focus, { once: true });
    go({ view: "queries" });
  }
  return true;
}
