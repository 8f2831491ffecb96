// @ts-check
/**
 * The run as a whole: the view "run". How good the scores are, what they explain, what they claim and how to test it, how
 * to read them, and what the manifests say.
 */

/** @param {ViewProps} props */
function RunView({ head }) {
  const { run } = head;
  return h(
    "div",
    { class: "run" },
    h("h1", null, run.folder === null ? "About these scores" : h("bdi", null, plain(head.title))),
    head.methods.map(({ title, doubts }, method) => h(Problems, { key: method, texts: doubts.map((doubt) => `${title}: ${doubt}`) })),
    run.evaluation !== null && h(EvaluationPart, { evaluation: run.evaluation }),
    run.ledger !== null && h(LedgerPart, { ledger: run.ledger }),
    run.causal !== null && h(CausalAverages, { facts: run.causal.facts }),
    run.claims.length > 0 && h(Claims, { claims: run.claims }),
    h(HowToRead, { head }),
    run.manifests.length > 0 &&
      h(
        "section",
        { "aria-label": "Manifests" },
        h("h2", null, "How the scores were computed"),
        run.manifests.map(({ title, facts }, at) => h("details", { key: at, open: run.manifests.length === 1 }, h("summary", null, h("bdi", null, plain(title))), h(Facts, { facts }))),
      ),
  );
}

/** What causal tracing says on average, and below it what to mind. @param {{facts: [string, string][]}} props */
function CausalAverages({ facts }) {
  const notes = facts.flatMap(([name, text]) => (name === "note" ? [text] : []));
  return h(
    "section",
    { "aria-label": "Where facts live" },
    h("h2", null, "Where facts live, on average"),
    h(Facts, { facts: facts.filter(([name]) => name !== "note") }),
    notes.length > 0 && h("ul", { class: "to-mind" }, notes.map((note, at) => h("li", { key: at }, h("bdi", null, plain(note))))),
  );
}

/** @param {{evaluation: Evaluation}} props */
function EvaluationPart({ evaluation }) {
  const { title, metrics, rows, ceiling, notes } = evaluation;
  const best = metrics.map((_, at) => Math.max(...rows.map(({ cells }) => cells[at]?.mean ?? -Infinity)));
  return h(
    "section",
    { class: "evaluation", "aria-label": "Evaluation" },
    h("h2", null, "How well the methods find the facts’ sources"),
    h("p", { class: "count" }, h("bdi", null, plain(title))),
    rows.length > 0 &&
      h(
        "div",
        { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Evaluation, scrolls" },
        h(
          "table",
          { class: "plain" },
          h("thead", null, h("tr", null, h("th", { scope: "col" }, "Method"), metrics.map((metric) => h("th", { scope: "col", class: "number", key: metric }, plain(metric))))),
          h(
            "tbody",
            null,
            rows.map(({ name, cells }, row) => h("tr", { key: row }, h("th", { scope: "row" }, h("bdi", null, plain(name))), metrics.map((metric, at) => h(MetricCell, { key: metric, metric, cell: cells[at] ?? null, isBest: rows.length > 1 && cells[at]?.mean === best[at] })))),
            ceiling.some((most) => most !== null) && h("tr", { class: "total" }, h("th", { scope: "row" }, "the most that is possible"), ceiling.map((most, at) => h("td", { class: "number", key: at, "data-label": plain(metrics[at] ?? "") }, shareText(most)))),
          ),
        ),
      ),
    notes.map((note) => h("p", { class: "count", key: note }, h("bdi", null, plain(note)))),
  );
}

/** @param {{metric: string, cell: Evaluation["rows"][number]["cells"][number] | null, isBest: boolean}} props */
function MetricCell({ metric, cell, isBest }) {
  const { mean, low, high } = cell ?? { mean: null, low: null, high: null };
  return h("td", { class: "number", "data-label": plain(metric) }, h(isBest ? "b" : "span", null, shareText(mean)), low !== null && high !== null && h("small", null, ` ${shareText(low)} to ${shareText(high)}`));
}

/** Format a mean in percent, with the decimal that `ftrace evaluate` has. @param {number | null} share  From 0 to 1. */
function shareText(share) {
  if (share === null) return UNKNOWN;
  const text = (share * 100).toFixed(1);
  return withMinus(`${text === "100.0" ? "100" : text}%`);
}

/** @param {{claims: RunPage["claims"]}} props */
function Claims({ claims }) {
  return h(
    "section",
    { class: "claims", "aria-label": "Test what is claimed" },
    h("h2", null, "Test what is claimed"),
    h("dl", null, claims.map(({ claim, command }) => h("div", { key: command }, h("dt", null, h("bdi", null, plain(claim))), h("dd", null, h(Command, { command }))))),
  );
}

/** A command to copy. @extends {preact.Component<{command: string}, {said: string}>} */
class Command extends Component {
  state = { said: "" };

  async copy() {
    const said = (await copied(this.props.command)) ? "copied" : "not copied: mark it and press Ctrl+C";
    this.setState({ said });
  }

  render() {
    return h(
      "div",
      { class: "command" },
      h("code", null, plain(this.props.command).split(" ").map((word, at) => h(Fragment, { key: at }, at > 0 && " ", h("span", { class: "word" }, word)))),
      h("button", { type: "button", onClick: () => this.copy() }, "Copy", h("span", { class: "unseen" }, ` ${plain(this.props.command)}`)),
      h("span", { class: "soft", role: "status" }, this.state.said),
    );
  }
}

/**
 * Put a text on the clipboard, and tell whether that worked.
 * @param {string} text
 */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

VIEWS["run"] = { title: "Run", of: "report", show: (props) => h(RunView, props) };
