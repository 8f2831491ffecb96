// @ts-check
/**
 * What stands around each view: the page's head and navigation, a query's head and tabs, the footer, and the help.
 *
 * Frame(props)                  the whole page
 * HELP, toggleHelp()            whether the keys are shown
 * nextTheme()                   light if dark is shown, and the other way round
 */

const HELP = { isOpen: false };
const THEMES = ["auto", "light", "dark"];
let THEME = "auto";

function toggleHelp() {
  HELP.isOpen = !HELP.isOpen;
  redraw();
  return true;
}

/** Show the opposite of what is shown; what the system has is followed again as soon as it is that. */
function nextTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (THEME === "auto" ? system : THEME) === "dark" ? "light" : "dark";
  return setTheme(next === system ? "auto" : next);
}

/** @param {string} theme */
function setTheme(theme) {
  THEME = THEMES.includes(theme) ? theme : "auto";
  document.documentElement.dataset["theme"] = THEME;
  try {
    localStorage.setItem("ftrace-theme", THEME);
  } catch {
    // The choice then holds until the page is closed.
  }
  redraw();
  return true;
}

function openTheme() {
  try {
    const kept = localStorage.getItem("ftrace-theme") ?? "auto";
    THEME = THEMES.includes(kept) ? kept : "auto";
  } catch {
    THEME = "auto";
  }
  document.documentElement.dataset["theme"] = THEME;
}

/** @param {{head: Head}} props */
function Frame({ head }) {
  const view = VIEWS[STATE["view"] ?? "queries"] ?? VIEWS["queries"];
  const query = queryPlace(head, STATE["query"] ?? "");
  const props = { head, state: STATE, method: chosenMethod(head), query };
  return h(
    Fragment,
    null,
    h(PageHead, { head }),
    h(
      "main",
      { id: "main", tabIndex: -1 },
      IGNORED.length > 0 &&
        h("p", { class: "problem", role: "alert" }, "The address names what this report doesn’t have, and that part was ignored: ", IGNORED.map((part) => h("code", { key: part }, h("bdi", null, plain(part)), " "))),
      view?.of === "query" && query < 0 && h("p", null, "No query is chosen. ", h("a", { href: href({ view: "queries" }) }, "Choose one"), "."),
      view?.of === "query" && query >= 0 && h(Pager, { head, query }), // there while the query is loaded, so that no key is lost
      view?.of === "query" && query >= 0 &&
        h(Loaded, {
          name: `query-${query}`,
          onward: h(Pager, { head, query }),
          soon: neighbours(head, query).map((place) => `query-${place}`),
          show: (/** @type {QueryChunk} */ chunk) => h(Fragment, null, h(QueryHead, { ...props, chunk }), h("section", { "aria-label": view.title }, view.show({ ...props, chunk }))),
        }),
      view !== undefined && view.of !== "query" && view.show(/** @type {ViewProps} */ (/** @type {unknown} */ (props))),
    ),
    h(PageFoot, { head }),
    HELP.isOpen && h(Help, null),
  );
}

/** @param {{head: Head}} props */
function PageHead({ head }) {
  const tabs = Object.entries(VIEWS).filter(([, view]) => view.of === "report");
  const isInQuery = VIEWS[STATE["view"] ?? ""]?.of === "query";
  return h(
    "header",
    { class: "page-head" },
    h("a", { class: "skip", href: "#main", onClick: skip }, "Skip to the content"),
    h("p", { class: "title" }, h("a", { href: href({ view: "queries" }) }, h("bdi", null, plain(head.title)))),
    h(
      "nav",
      { "aria-label": "Report" },
      tabs.map(([name, view]) => {
        const isHere = (STATE["view"] ?? "queries") === name;
        return h("a", { key: name, href: href({ view: name }), "aria-current": isHere ? "page" : isInQuery && name === "queries" ? "true" : undefined }, view.title);
      }),
    ),
    h(
      "p",
      { class: "tools" },
      h("button", { type: "button", class: "quiet", onClick: nextTheme, "aria-label": `Colours: ${THEME}` }, { auto: "◐", light: "☼", dark: "☾" }[THEME]),
      h("button", { type: "button", class: "quiet", onClick: toggleHelp, "aria-label": "Keys", "aria-expanded": HELP.isOpen }, "?"),
    ),
  );
}

/** Move on to the content without an address of its own. @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/** @param {{head: Head}} props */
function PageFoot({ head }) {
  return h(
    "footer",
    null,
    h("p", null, "Made by ", plain(head.made_by), "."),
    head.is_redacted && h("p", null, "Texts were left out of this report."),
    head.limits.map((limit, place) => h("p", { key: place }, plain(limit))),
  );
}

function Help() {
  return h(
    "aside",
    { class: "help", "aria-label": "Keys" },
    h("dl", null, KEYS.flatMap(([keys, what]) => [h("dt", { key: keys }, keys), h("dd", { key: what }, what)])),
    h("button", { type: "button", onClick: toggleHelp }, "Close"),
  );
}
