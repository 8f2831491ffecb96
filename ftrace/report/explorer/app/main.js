// @ts-check
/**
 * The start of the app, and the one function that draws the page from its state.
 *
 * redraw()   draws the page anew
 */

/** @type {Head | null} */
let HEAD = null;

function redraw() {
  const root = document.getElementById("app");
  if (root !== null && HEAD !== null) render(h(Frame, { head: HEAD }), root);
}

/** Where the page was scrolled to at each step of the browser's history. @type {Map<number, number>} */
const SCROLLED = new Map();
let historyStep = 0;

/** Take the state from the address; a step back returns to where the page was scrolled to. */
function arrive() {
  if (HEAD === null) return;
  SCROLLED.set(historyStep, scrollY);
  const before = STATE;
  const { state, ignored } = readAddress(location.hash, HEAD);
  [STATE, IGNORED] = [state, ignored];
  document.title = titleOf(HEAD);
  redraw();
  const known = history.state?.step;
  if (typeof known === "number") {
    historyStep = known;
    scrollTo(0, SCROLLED.get(known) ?? 0);
    return;
  }
  historyStep = Math.max(0, ...SCROLLED.keys()) + 1;
  history.replaceState({ step: historyStep }, "");
  if (before["view"] !== state["view"] || before["query"] !== state["query"]) {
    scrollTo(0, 0);
    document.getElementById("main")?.focus({ preventScroll: true });
    returnTo(document.querySelector("tr.chosen"));
  }
}

/**
 * Return what a bookmark of the current state is called: the query and its view, or an example, or another view.
 * @param {Head} head
 */
function titleOf(head) {
  const id = STATE["query"] ?? "";
  const prompt = head.queries.prompts[queryPlace(head, id)] ?? null;
  const name = STATE["view"] ?? "queries";
  const view = VIEWS[name];
  const parts = [plain(head.title)];
  if (view?.of === "query" && queryPlace(head, id) >= 0) {
    if (name !== "query") parts.unshift(view.title);
    parts.unshift(prompt === null ? idText(id, head.queries.names[queryPlace(head, id)] ?? null) : plain(prompt.replace(BLANK, "…")));
  } else if (view?.of === "example" && STATE["example"]) parts.unshift(`Example #${STATE["example"]}`);
  else if (view !== undefined) parts.unshift(view.title);
  return parts.join(" · ");
}

/** Let a reader who goes up to the queries find the one that was open. @param {Element | null} row */
function returnTo(row) {
  row?.scrollIntoView({ block: "center" });
  row?.querySelector("a")?.focus({ preventScroll: true });
}

async function start() {
  openTheme();
  const root = document.getElementById("app");
  try {
    HEAD = await loadHead();
    openNotes(HEAD);
    history.scrollRestoration = "manual";
    addEventListener("hashchange", arrive);
    startKeys();
    arrive();
  } catch (error) {
    const isOurs = error instanceof Error && !(error instanceof TypeError); // otherwise the head lacks what is expected in it
    if (root !== null) root.textContent = isOurs ? error.message : damaged("head");
  }
}

start();
