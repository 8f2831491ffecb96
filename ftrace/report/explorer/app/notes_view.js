// @ts-check
/** The view of all notes, with export and import. */

/** @extends {preact.Component<{head: Head}, {told: string, isBad: boolean}>} */
class NotesView extends Component {
  state = { told: "", isBad: false };

  render() {
    const { head } = this.props;
    const notes = notesInOrder(head);
    return h(
      "div",
      { class: "notes" },
      h("h1", null, "Notes"),
      h("p", { class: "lead" }, "Notes are kept in this browser, for this report. To pass them on, export them."),
      NOTES_PROBLEM !== "" && h(Problems, { texts: [NOTES_PROBLEM] }),
      h(
        "p",
        { class: "tools" },
        h("button", { type: "button", disabled: notes.length === 0, onClick: () => saveNotes(head) }, "Export as JSON"),
        h("label", { class: "button" }, "Import ", h("input", { type: "file", class: "unseen", accept: ".json,application/json", onChange: (/** @type {Event} */ event) => this.importFile(event) })),
      ),
      this.state.told !== "" && h("p", { class: this.state.isBad ? "problem" : "count", role: "status" }, this.state.told),
      notes.length === 0 && h("p", { class: "empty" }, "None yet. “Add a note” stands beside each query and each example."),
      h("ol", { class: "note-list" }, notes.map((note) => h("li", { key: noteKey(note.query, note.example), "data-entry": true }, h(NoteEntry, { head, note })))),
    );
  }

  /** @param {Event} event */
  async importFile(event) {
    const field = /** @type {HTMLInputElement} */ (event.target);
    const file = field.files?.[0];
    if (file === undefined) return;
    try {
      const text = await file.text();
      catchUp(this.props.head);
      const { read, strange } = readNotesFile(text, this.props.head);
      keepNotes(this.props.head);
      const left = strange > 0 ? ` ${counted(strange, "note")} left out, of queries that this report doesn’t have.` : "";
      this.setState({ told: `${counted(read, "note")} read.${left}`, isBad: false });
    } catch (error) {
      this.setState({ told: error instanceof Error ? error.message : String(error), isBad: true });
    }
    field.value = "";
  }
}

/** @param {Head} head */
function saveNotes(head) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([notesFile(head)], { type: "application/json" }));
  link.download = "ftrace-notes.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {{head: Head, note: Note}} props */
function NoteEntry({ head, note }) {
  const place = queryPlace(head, note.query);
  const name = head.queries.prompts[place] ?? null;
  const to = href({ view: "query", query: note.query, example: note.example ?? "" });
  return h(
    Fragment,
    null,
    h(
      "p",
      { class: "words" },
      h("a", { href: to, "data-step": true }, name === null ? h("bdi", null, idText(note.query, head.queries.names[place] ?? null)) : h(Prompt, { text: name, answer: head.queries.answers[place] ?? null })),
      note.example !== null && h("span", { class: "soft" }, ` example #${note.example}`),
    ),
    h(NoteField, { head, query: note.query, example: note.example, on: `query ${note.query}${note.example === null ? "" : `, example ${note.example}`}` }),
  );
}

VIEWS["notes"] = { title: "Notes", of: "report", show: ({ head }) => h(NotesView, { head }) };
