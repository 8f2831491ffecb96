// @ts-check
/**
 * A query: QueryHead(props), which stands above each of its views, and the view of its strongest examples.
 */

/** @param {ViewProps} props */
function QueryHead({ chunk }) {
  return h("h1", null, chunk.prompt === null ? idText(chunk.id, chunk.name) : h(Prompt, { text: chunk.prompt, cut: chunk.cut }));
}

VIEWS["query"] = { title: "Examples", of: "query", show: () => null };
