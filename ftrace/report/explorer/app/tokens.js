// @ts-check
/**
 * Which tokens of the strongest examples a score comes from: the view "tokens".
 *
 * A token's share of the largest is said four times over: by its ground, by the thickness of the line below it (dashed if
 * the token raises the loss), by a number below the strongest, and for each token in a line that follows the pointer and
 * the focus, and in a table.
 */

const NUMBERED_SHARE = 0.25;
const WORD_BEGINS = /^[▁Ġ ]/;

/** @typedef {Tokens["examples"][number]} ExampleTokens */
/** @typedef {ExampleTokens["sequences"][number]} TokenSequence */

/** @param {ViewProps} props */
function TokensView({ head, chunk }) {
  const { tokens } = chunk;
  if (tokens === null) return h("p", { class: "empty" }, "This report has no scores of tokens for this query.");
  const by = plain(methodKeys(head)[tokens.method] ?? "");
  return h(
    Fragment,
    null,
    h("p", { class: "reading" }, `The strongest examples by ${by}`, tokens.snapshot !== "" && [", with the gradients at ", h("bdi", null, snapshotText(tokens.snapshot))], ". ", h("bdi", null, plain(tokens.note))),
    h("p", { class: "token-key", "aria-hidden": "true" }, h("span", { class: "token plus", style: heat(1) }, h("span", { class: "ink" }, "lowers")), " the query’s loss, or ", h("span", { class: "token minus", style: heat(1) }, h("span", { class: "ink" }, "raises")), " it"),
    h("ol", { class: "token-examples" }, tokens.examples.map((example) => h(TokenExample, { key: example.example, chunk, method: tokens.method, snapshot: tokens.snapshot, example }))),
  );
}

/**
 * An example's tokens as running text. One token of each sequence is in the order of the focus, and arrows move on from it.
 * @extends {preact.Component<{chunk: QueryChunk, method: number, snapshot: string, example: ExampleTokens}, {sequence: number, place: number}>}
 */
class TokenExample extends Component {
  state = { sequence: -1, place: -1 };

  render() {
    const { chunk, method, snapshot, example } = this.props;
    const known = chunk.examples[example.example];
    const place = known?.places[method] ?? null;
    const largest = largestOf(example.sequences.flatMap((sequence) => sequence.values));
    const read = example.sequences[this.state.sequence];
    return h(
      "li",
      null,
      h(
        "div",
        { class: "meta" },
        h("span", { class: "rank" }, rankText(place?.rank ?? null, place?.ties ?? 0)),
        h("span", null, "score ", h("b", null, scoreText(place?.score ?? null, Math.abs(place?.score ?? 0)))),
        known !== undefined && h(FactMark, { example: known }),
        known !== undefined && h(OwnAnswer, { chunk, example: known }),
        known !== undefined && h(ExampleLink, { id: known.id, name: known.name, isStep: true }),
        h("span", { class: "readout", "aria-live": "polite" }, read !== undefined && tokenText(read.tokens[this.state.place] ?? "", read.values[this.state.place] ?? null, largest)),
      ),
      h(
        "div",
        { class: "heats", onMouseLeave: () => this.setState({ sequence: -1 }) },
        example.sequences.map((sequence, at) => h(Heat, { key: at, sequence, largest, isAlone: example.sequences.length === 1, onRead: (/** @type {number} */ token) => this.setState({ sequence: at, place: token }) })),
      ),
      h(TokenTable, { example, snapshot, largest }),
    );
  }
}

/** @param {{sequence: TokenSequence, largest: number, isAlone: boolean, onRead: (place: number) => void}} props */
function Heat({ sequence, largest, isAlone, onRead }) {
  const sizes = sequence.values.map((value) => Math.abs(value ?? 0));
  const strongest = sizes.indexOf(Math.max(...sizes));
  return h(
    Fragment,
    null,
    !isAlone && h("p", { class: "label" }, plain(sequence.name)),
    h(
      "p",
      { class: "tokens", role: "group", "aria-label": `Tokens of the ${plain(sequence.name)}; arrow keys move between them`, onKeyDown: moveFocus },
      sequence.tokens.map((token, place) => h(Token, { key: place, token, value: sequence.values[place] ?? null, largest, isStop: place === strongest, onRead: () => onRead(place) })),
    ),
  );
}

/** Move the focus to the token before or after. @param {KeyboardEvent} event */
function moveFocus(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  const tokens = /** @type {HTMLElement[]} */ ([.../** @type {HTMLElement} */ (event.currentTarget).querySelectorAll("[data-token]")]);
  const at = tokens.indexOf(/** @type {HTMLElement} */ (event.target)) + by;
  tokens[Math.min(Math.max(at, 0), tokens.length - 1)]?.focus();
}

/** @param {string} token @param {number | null} value @param {number} largest */
function tokenText(token, value, largest) {
  const share = largest && value !== null ? `, ${percent(Math.abs(value) / largest)} of the largest` : "";
  return h(Fragment, null, h("bdi", { class: "words" }, `“${plain(token)}”`), ` ${scoreText(value, largest)}${share}`);
}

/** @param {{token: string, value: number | null, largest: number, isStop: boolean, onRead: () => void}} props */
function Token({ token, value, largest, isStop, onRead }) {
  const share = largest ? (value ?? 0) / largest : 0;
  const begins = WORD_BEGINS.test(token);
  const shown = plain(token.replace(WORD_BEGINS, ""));
  return h(
    Fragment,
    null,
    begins && " ",
    h(
      "span",
      {
        class: `token ${share < 0 ? "minus" : "plus"}`,
        style: heat(Math.abs(share)),
        tabIndex: isStop ? 0 : -1,
        "data-token": true,
        role: "img",
        "aria-label": `${plain(token)} ${scoreText(value, largest)}`,
        onMouseEnter: onRead,
        onFocus: onRead,
      },
      h("span", { class: "ink" }, h("bdi", null, shown === "" ? "␣" : shown)),
      Math.abs(share) >= NUMBERED_SHARE && h("small", null, scoreText(value, largest)),
    ),
  );
}

/** @param {number} share  From 0 to 1. */
function heat(share) {
  return { "--heat": `${Math.round(Math.min(1, share) * 100)}%`, "--weight": `${share < 0.02 ? 0 : (1 + 3 * Math.min(1, share)).toFixed(1)}px` };
}

/** @param {{example: ExampleTokens, snapshot: string, largest: number}} props */
function TokenTable({ example, snapshot, largest }) {
  return h(
    "details",
    null,
    h("summary", null, "All numbers"),
    h("p", { class: "count total" }, "Product of the gradients", snapshot !== "" && [" at ", h("bdi", null, snapshotText(snapshot))], ": ", h("b", null, scoreText(example.total, Math.abs(example.total ?? 0)))),
    h(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Scores of all tokens" },
      h(
        "table",
        { class: "plain token-table" },
        h("thead", null, h("tr", null, ["Sequence", "Position", "Token"].map((title) => h("th", { scope: "col", key: title }, title)), h("th", { scope: "col", class: "number" }, "Score"))),
        h(
          "tbody",
          null,
          example.sequences.flatMap(({ name, tokens, values }) =>
            tokens.map((token, place) =>
              h("tr", { key: `${name} ${place}` }, h("td", { class: "soft" }, plain(name)), h("td", { class: "soft" }, count(place + 1)), h("th", { scope: "row" }, h("bdi", { class: "words" }, plain(token))), h("td", { class: "number" }, scoreText(values[place] ?? null, largest))),
            ),
          ),
        ),
      ),
    ),
  );
}

VIEWS["tokens"] = { title: "Tokens", of: "query", show: (props) => h(TokensView, props), isEmpty: (_, chunk) => chunk.tokens === null };
