// @ts-check
/**
 * A reader's notes: one for a query, or for an example of a query. The browser keeps them, under the report's fingerprint.
 *
 * NOTES               by key; noteKey(query, example) makes one
 * openNotes(head)     reads what the browser kept
 * writeNote(...)      keeps a note; an empty one isn't kept
 * notesFile(head), readNotesFile(text, head)   all of them as JSON, and back
 * NoteField(props)    a field for a note, folded to a control; `on` says what it is on
 */

/** @typedef {{query: Id, example: Id | null, text: string}} Note */

const LONGEST_NOTE = 10_000;

/** @type {Map<string, Note>} */
let NOTES = new Map();
/** Why notes are lost when the page is closed; "" if they are kept. */
let NOTES_PROBLEM = "";
let notesPlace = "";

/**
 * @param {Id} query
 * @param {Id | null} [example]
 */
function noteKey(query, example = null) {
  return example === null ? query : `${query}/${example}`;
}

/** @param {Head} head */
function openNotes(head) {
  notesPlace = `ftrace-notes ${head.fingerprint}`;
  let kept = null;
  try {
    kept = localStorage.getItem(notesPlace);
  } catch (error) {
    NOTES_PROBLEM = `This browser keeps no notes for this page (${error instanceof Error ? error.message : "no reason given"}). Export them before you close it.`;
    return;
  }
  try {
    takeNotes(kept, head);
  } catch {
    NOTES_PROBLEM = "The notes that this browser kept can’t be read. The next note that you write replaces them.";
  }
  addEventListener("storage", ({ key, newValue }) => {
    if (key !== notesPlace || NOTES_PROBLEM !== "") return;
    try {
      takeNotes(newValue, head);
      redraw();
    } catch {
      // Another page left something else there; what is here stays.
    }
  });
}

/**
 * Take the notes as the browser keeps them: the report may be open in another window, where notes are written, too.
 * @param {string | null} kept
 * @param {Head} head
 */
function takeNotes(kept, head) {
  if (kept === null) return;
  /** @type {Map<string, Note>} */
  const notes = new Map();
  readNotesFile(kept, head, notes);
  NOTES = notes;
}

/**
 * Take what another window has written since; notes that the browser couldn't keep are only here.
 * @param {Head} head
 */
function catchUp(head) {
  if (NOTES_PROBLEM !== "") return;
  try {
    takeNotes(localStorage.getItem(notesPlace), head);
  } catch {
    // What is here is all that can be read.
  }
}

/**
 * @param {Head} head
 * @param {Id} query
 * @param {Id | null} example
 * @param {string} text
 */
function writeNote(head, query, example, text) {
  catchUp(head);
  NOTES.set(noteKey(query, example), { query, example, text: text.slice(0, LONGEST_NOTE) });
  keepNotes(head);
}

/**
 * Remove a note whose text was deleted, once its field is left.
 * @param {Id} query
 * @param {Id | null} example
 */
function dropEmptyNote(query, example) {
  const key = noteKey(query, example);
  if (NOTES.get(key)?.text.trim() === "") NOTES.delete(key);
}

/** @param {Head} head */
function keepNotes(head) {
  try {
    localStorage.setItem(notesPlace, notesFile(head));
    NOTES_PROBLEM = "";
  } catch {
    NOTES_PROBLEM = "This browser couldn’t keep the notes. Export them before you close the page.";
  }
}

/** @param {Head} head */
function notesInOrder(head) {
  return [...NOTES.values()].sort((a, b) => queryPlace(head, a.query) - queryPlace(head, b.query));
}

/**
 * Return all notes as JSON, in the order of the queries.
 * @param {Head} head
 */
function notesFile(head) {
  const notes = notesInOrder(head).filter(({ text }) => text.trim() !== "");
  return JSON.stringify({ format: "ftrace-notes", version: 1, report: head.title, fingerprint: head.fingerprint, notes }, null, 2);
}

/**
 * Add notes from JSON as `notesFile` writes it. A note that is there already is replaced.
 * @param {string} text
 * @param {Head} head
 * @param {Map<string, Note>} into
 * @returns {{read: number, strange: number}} How many were read, and how many are of queries that this report doesn't have.
 */
function readNotesFile(text, head, into = NOTES) {
  const expected = 'Expected notes that were exported here: JSON with "format": "ftrace-notes" and "version": 1';
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error(`${expected}; found text that isn’t JSON.`);
  }
  if (file?.format !== "ftrace-notes" || file.version !== 1 || !Array.isArray(file.notes)) {
    throw new Error(`${expected}; found something else.`);
  }
  let [read, strange] = [0, 0];
  for (const note of file.notes) {
    const { query, example, text: words } = note ?? {};
    const isNote = typeof query === "string" && typeof words === "string" && words.length <= LONGEST_NOTE;
    const hasExample = example === null || (typeof example === "string" && /^-?\d{1,20}$/.test(example));
    if (!isNote || !hasExample || queryPlace(head, query) < 0) strange++;
    else {
      into.set(noteKey(query, example), { query, example, text: words });
      read++;
    }
  }
  return { read, strange };
}

/** @typedef {{head: Head, query: Id, example?: Id | null, on: string}} NoteFieldProps */

/** @extends {preact.Component<NoteFieldProps, {isOpen: boolean}>} */
class NoteField extends Component {
  state = { isOpen: false };

  render() {
    const { head, query, example = null, on } = this.props;
    const note = NOTES.get(noteKey(query, example))?.text ?? "";
    if (!this.state.isOpen && note === "") {
      const open = () => this.setState({ isOpen: true });
      return h("button", { type: "button", class: "quiet note-add", "aria-label": `add a note on ${on}`, onClick: open }, "add a note");
    }
    return h("textarea", {
      class: "note",
      "aria-label": `Note on ${on}`,
      placeholder: "Your note",
      rows: Math.min(8, 1 + note.split("\n").length),
      maxLength: LONGEST_NOTE,
      value: note,
      ref: (/** @type {HTMLTextAreaElement | null} */ field) => {
        if (field !== null && this.state.isOpen && !this.hadFocus) {
          this.hadFocus = true;
          field.focus();
        }
      },
      onInput: (/** @type {Event} */ event) => {
        writeNote(head, query, example, /** @type {HTMLTextAreaElement} */ (event.target).value);
        redraw();
      },
      onFocus: () => {
        this.hadFocus = true;
        this.setState({ isOpen: true }); // so that it stays while its text is written anew
      },
      onBlur: () => {
        this.hadFocus = false;
        dropEmptyNote(query, example);
        this.setState({ isOpen: false });
        redraw();
      },
    });
  }
}
