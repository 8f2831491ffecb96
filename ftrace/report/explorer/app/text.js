// @ts-check
/**
 * Texts of the data, shown safely.
 *
 * plain(text)        the text with visible escapes for what can't be seen or would change the writing direction
 * Words(props)       a text in <bdi>, its shared words marked, long ones folded to the part that shares most; or a link
 * Prompt(props)      a prompt with its blank
 * hasWords(text, words)   whether words stand in a text, and not only as a part of other words
 * excerpt(...)       the part of a text in which most is marked
 * idText(id, name)   how an example or query is called
 */

const { h, render, Component, Fragment } = preact;

/** As in ftrace.shown_text: what a browser would act on, or a reader couldn't see. */
const UNPRINTABLE =
  /\r\n|[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\u{1d173}-\u{1d17a}\u{e0000}-\u{e00ff}]/gu;
const LINE_BREAKS = ["\n", "\r\n", "\u2028", "\u2029"];
/** Which stay behind a letter that they can join to another one. */
const JOINERS = ["\u200c", "\u200d"];
/** Stands in a prompt for what the model is to fill in. */
const BLANK = /<extra_id_\d+>/g;

/**
 * Return a text without characters that a browser would act on or that can't be seen.
 * @param {string} text
 */
function plain(text) {
  return text.replace(UNPRINTABLE, (found, /** @type {number} */ place) => {
    if (JOINERS.includes(found) && text.charCodeAt(place - 1) > 0x7f) return found;
    if (LINE_BREAKS.includes(found)) return " ↵ ";
    if (found === "\t") return " ";
    const code = found.codePointAt(0) ?? 0;
    const hex = (/** @type {number} */ width) => code.toString(16).padStart(width, "0");
    return code < 0x100 ? `\\x${hex(2)}` : code < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`;
  });
}

/**
 * Return how an example or a query is called: by its name, or by its number.
 * @param {Id} id
 * @param {string | null} name
 */
function idText(id, name) {
  return name === null ? `#${id}` : plain(name);
}

/**
 * Cut a text to the part in which most is marked.
 * @param {string} text
 * @param {Span[]} spans
 * @param {number} limit  The most characters.
 * @returns {{text: string, spans: Span[], before: number, after: number}} The part, its spans, and what was left out.
 */
function excerpt(text, spans, limit) {
  if (text.length <= limit) return { text, spans, before: 0, after: 0 };
  const begins = [0, ...spans.map(([begin]) => Math.max(0, Math.min(begin - (limit >> 2), text.length - limit)))];
  const inside = (/** @type {number} */ place) =>
    spans.filter(([begin, end]) => place <= begin && end <= place + limit).length;
  let [begin, most] = [0, -1];
  for (const place of new Set(begins)) {
    const count = inside(place);
    if (count > most) [begin, most] = [place, count];
  }
  if (begin > 0) {
    const space = text.indexOf(" ", begin);
    if (space >= 0 && space < begin + (limit >> 2)) begin = space + 1;
  }
  const end = wholeCharacter(text, Math.min(text.length, begin + limit));
  begin = wholeCharacter(text, begin);
  const kept = spans.filter(([from, to]) => begin <= from && to <= end);
  return {
    text: text.slice(begin, end),
    spans: kept.map(([from, to]) => /** @type {Span} */ ([from - begin, to - begin])),
    before: begin,
    after: text.length - end,
  };
}

/**
 * Return a place in a text, or the one before if it would part the two units of one character.
 * @param {string} text
 * @param {number} place
 */
function wholeCharacter(text, place) {
  return place > 0 && (text.codePointAt(place - 1) ?? 0) > 0xffff ? place - 1 : place;
}

/**
 * Return a text with visible escapes, its blanks drawn, and filled with the answer if it is given.
 * @param {string} text
 * @param {string | null} fill
 * @returns {preact.ComponentChildren[]}
 */
function withBlanks(text, fill) {
  return text.split(BLANK).flatMap((part, place) => (place === 0 ? [plain(part)] : [h(Blank, { fill }), plain(part)]));
}

/** @param {string} text */
function folded(text) {
  return text.normalize("NFKC").toLowerCase();
}

const IN_WORDS = /[\p{L}\p{N}]/u;

/**
 * Tell whether words stand in a text: not "no" in "I know". Upper and lower case are alike.
 * @param {string} text
 * @param {string} words
 */
function hasWords(text, words) {
  const [all, sought] = [folded(text), folded(words).trim()];
  if (sought === "") return true;
  for (let at = all.indexOf(sought); at >= 0; at = all.indexOf(sought, at + 1)) {
    if (!IN_WORDS.test(all.slice(at - 1, at)) && !IN_WORDS.test(all.slice(at + sought.length).slice(0, 1))) return true;
  }
  return false;
}

/** @param {{fill: string | null}} props */
function Blank({ fill }) {
  if (fill !== null) return h("span", { class: "blank filled" }, plain(fill));
  return h("span", { class: "blank" }, h("span", { class: "unseen" }, " (blank) "));
}

/**
 * Join spans between which there is only space.
 * @param {string} text
 * @param {Span[]} spans
 */
function joined(text, spans) {
  /** @type {Span[]} */
  const result = [];
  for (const [begin, end] of spans) {
    const last = result[result.length - 1];
    if (last !== undefined && text.slice(last[1], begin).trim() === "") last[1] = end;
    else result.push([begin, end]);
  }
  return result;
}

/**
 * Return the pieces of a text, the marked ones as elements.
 * @param {string} text
 * @param {Span[]} spans
 * @param {string | null} fill
 * @returns {preact.ComponentChildren[]}
 */
function pieces(text, spans, fill) {
  const result = [];
  let end = 0;
  for (const [begin, next] of joined(text, spans)) {
    result.push(withBlanks(text.slice(end, begin), fill), h("mark", null, withBlanks(text.slice(begin, next), fill)));
    end = next;
  }
  result.push(withBlanks(text.slice(end), fill));
  return result;
}

/**
 * A text of the data in <bdi>, with marks; a long one is folded, and a control unfolds it. With `link` it is a link.
 * @extends {preact.Component<{text: string, spans?: Span[], cut?: number, limit?: number, fill?: string | null, link?: string}, {isOpen: boolean}>}
 */
class Words extends Component {
  state = { isOpen: false };

  render() {
    const { text, spans = [], cut = 0, limit = 0, fill = null, link } = this.props;
    const isLong = limit > 0 && text.length > limit + 80;
    const part = isLong && !this.state.isOpen ? excerpt(text, spans, limit) : { text, spans, before: 0, after: 0 };
    const gone = cut > 0 ? h("span", { class: "cut" }, ` … +${counted(cut, "character")}`) : null;
    const hidden = part.before + part.after;
    const shown = [part.before > 0 && "… ", h("bdi", null, pieces(part.text, part.spans, fill)), part.after > 0 && "… "];
    return h(
      "span",
      { class: "words" },
      link === undefined ? shown : h("a", { class: "to-example", href: link, "data-step": true }, shown),
      part.after === 0 && gone,
      isLong &&
        h(
          "button",
          {
            type: "button",
            class: "quiet fold",
            "aria-expanded": this.state.isOpen,
            onClick: () => this.setState({ isOpen: !this.state.isOpen }),
          },
          this.state.isOpen ? "show less" : `show all, +${counted(hidden, "character")}`,
        ),
    );
  }
}

/**
 * A prompt whose blank is drawn; without one of its own, the blank for the answer follows at the end, if there is an answer.
 * @param {{text: string, answer: string | null, cut?: number}} props
 */
function Prompt({ text, answer, cut = 0 }) {
  const children = withBlanks(text, null);
  if (children.length === 1 && answer !== null && cut === 0) children.push("\u00a0", h(Blank, { fill: null }));
  return h("span", { class: "words" }, h("bdi", null, children), cut > 0 && h("span", { class: "cut" }, ` … +${counted(cut, "character")}`));
}
