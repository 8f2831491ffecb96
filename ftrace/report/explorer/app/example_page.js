// @ts-check
/**
 * A training example and what it did: the view "example". It shows the example's part in the query that it was opened
 * from, and the queries that it helped or hurt most.
 */

const LONG_TEXT = 900;

/**
 * Return which chunk holds an example's page; -1 if none does.
 * @param {Id[]} firsts  The first id of each chunk, ascending as numbers.
 * @param {Id} id
 */
function exampleChunk(firsts, id) {
  return firsts.findLastIndex((first) => BigInt(first) <= BigInt(id));
}

/** @param {ViewProps} props */
function ExampleView(props) {
  const { head, state } = props;
  const id = state["example"] ?? "";
  if (id === "") return h("p", null, "No example is chosen. ", h("a", { href: href({ view: "queries" }) }, "Choose a query"), ", and one of its examples.");
  const chunk = exampleChunk(head.example_chunks, id);
  if (chunk < 0) return h(NoSuchExample, { id });
  return h(Loaded, {
    name: `example-${chunk}`,
    show: (/** @type {ExampleChunk} */ { examples }) => {
      const page = examples.find((example) => example.id === id);
      return page === undefined ? h(NoSuchExample, { id }) : h(ExampleBody, { ...props, page });
    },
  });
}

/** @param {{id: Id}} props */
function NoSuchExample({ id }) {
  return h("p", null, "This report says nothing of example ", h("bdi", null, `#${id}`), ": it has pages of examples that are among the strongest of a query. ", h("a", { href: href({ view: "queries", example: "" }) }, "All queries"));
}

/** @param {ViewProps & {page: ExamplePage}} props */
function ExampleBody(props) {
  const { head, method, query, page } = props;
  const totals = page.methods[method] ?? null;
  return h(
    "article",
    { class: "example-page" },
    h("nav", { class: "pager", "aria-label": "Back" }, query >= 0 ? h("a", { href: href({ view: "query", example: page.id }), "data-key": "up" }, "Back to the query") : h("a", { href: href({ view: "queries" }), "data-key": "up" }, "All queries")),
    h("p", { class: "kicker" }, h("span", null, "training example ", h("bdi", null, idText(page.id, page.name))), page.answer !== null && h("span", null, "teaches ", h("bdi", null, plain(page.answer)))),
    h("h1", { class: page.text !== null && page.text.length > 160 ? "long" : "" }, page.text === null ? h("bdi", null, idText(page.id, page.name)) : h(Words, { text: page.text, cut: page.cut, limit: LONG_TEXT })),
    query >= 0 && h(NoteField, { head, query: head.queries.ids[query] ?? "", example: page.id, on: "this example", key: page.id }),
    query >= 0 && h(Loaded, { name: `query-${query}`, show: (/** @type {QueryChunk} */ chunk) => h(ForQuery, { ...props, chunk }) }),
    h("h2", null, "For all queries"),
    h("div", { class: "filters" }, h(MethodChoice, { head, method })),
    h("p", { class: "reading" }, kindText(head.methods[method])),
    totals === null ? h("p", { class: "empty" }, "This method ranks the example for no query.") : h(Totals, { head, method, totals }),
  );
}

/** @param {ViewProps & {page: ExamplePage}} props */
function ForQuery({ head, query, page, chunk }) {
  const place = chunk.examples.findIndex((example) => example.id === page.id);
  const example = chunk.examples[place];
  return h(
    "section",
    { class: "for-query", "aria-label": "For the query" },
    h("h2", null, "For ", h(QueryLink, { head, place: query })),
    example === undefined ? h("p", { class: "empty" }, "The example is not among the strongest of this query.") : h(Fragment, null, h(PlacesTable, { head, example }), h(Breakdowns, { head, chunk, place })),
  );
}

/** @param {{head: Head, example: Example}} props */
function PlacesTable({ head, example }) {
  const columns = ["Method", "Rank", "Rank among opponents", "Score", "Share"];
  return h(
    "div",
    { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Places in all lists" },
    h(
      "table",
      { class: "plain" },
      h("thead", null, h("tr", null, columns.map((title, at) => h("th", { scope: "col", key: title, class: at > 0 ? "number" : "", colSpan: at === columns.length - 1 ? 2 : 1 }, title)))),
      h(
        "tbody",
        null,
        methodKeys(head).map((key, method) => {
          const known = example.places[method] ?? null;
          return h(
            "tr",
            { key },
            h("th", { scope: "row" }, h("bdi", null, plain(key))),
            known === null
              ? h("td", { colSpan: columns.length, class: "soft" }, "not ranked, or not known")
              : [
                  h("td", { class: "number" }, rankText(known.rank, known.ties)),
                  h("td", { class: "number soft" }, rankText(known.rank_from_below, known.ties)),
                  h("td", { class: "number" }, scoreText(known.score, Math.abs(known.score ?? 0)), " ", h("small", null, head.methods[method]?.unit ?? "")),
                  h("td", { class: "number" }, percent(known.share)),
                  h("td", null, h(ScoreBar, { share: known.share })),
                ],
          );
        }),
      ),
    ),
  );
}

const AXES = new Map([["epoch", "By epoch"], ["layer", "By layer"], ["learned", "Before and after learning"]]);

/** The example's score for the query, in parts. @param {{head: Head, chunk: QueryChunk, place: number}} props */
function Breakdowns({ head, chunk, place }) {
  const shown = chunk.parts.flatMap((parts, at) => {
    const values = parts.values[parts.examples.indexOf(place)];
    const names = head.methods[parts.method]?.axes[parts.axis] ?? [];
    return values === undefined ? [] : [{ key: at, method: parts.method, axis: parts.axis, names, values }];
  });
  if (shown.length === 0) return null;
  return h(
    "div",
    { class: "breakdowns" },
    shown.map(({ key, method, axis, names, values }) =>
      h(PartBars, { key, title: AXES.get(axis) ?? `By ${plain(axis)}`, note: plain(methodKeys(head)[method] ?? ""), names, values }),
    ),
  );
}

/** Parts of a score as bars to both sides of zero, with their numbers. @param {{title: string, note: string, names: string[], values: (number | null)[]}} props */
function PartBars({ title, note, names, values }) {
  const largest = largestOf(values);
  return h(
    "table",
    { class: "part-bars" },
    h("caption", null, title, " ", h("small", null, h("bdi", null, note))),
    h("thead", { class: "unseen" }, h("tr", null, h("th", { scope: "col" }, "Part"), h("th", { scope: "col" }, "Bar"), h("th", { scope: "col" }, "Score"))),
    h(
      "tbody",
      null,
      values.map((value, at) =>
        h("tr", { key: at }, h("th", { scope: "row" }, h("bdi", null, plain(names[at] ?? String(at + 1)))), h("td", null, h(TwoSidedBar, { share: largest ? (value ?? 0) / largest : 0 })), h("td", { class: "number" }, scoreText(value, largest))),
      ),
    ),
  );
}

/** A bar from the middle: to the right and filled if positive, to the left and hollow if negative. @param {{share: number}} props */
function TwoSidedBar({ share }) {
  const width = `${Math.min(1, Math.abs(share)) * 50}%`;
  return h("span", { class: "two-sided", "aria-hidden": "true" }, h("span", { class: share < 0 ? "minus" : "plus", style: { width } }));
}

/** @param {{head: Head, method: number, totals: ExampleTotals}} props */
function Totals({ head, method, totals }) {
  const unit = head.methods[method]?.unit ?? "";
  const sides = /** @type {const} */ ([
    ["Helped most", totals.most_helped, totals.helped, totals.sum_helped],
    ["Hurt most", totals.most_hurt, totals.hurt, totals.sum_hurt],
  ]);
  const largest = largestOf([...totals.most_helped, ...totals.most_hurt].map(([, score]) => score));
  return h(
    "div",
    { class: "sides" },
    sides.map(([title, queries, number, sum]) =>
      h(
        "section",
        { key: title, "aria-label": title },
        h("h3", null, title, " ", h("small", null, totalText(number, sum, unit))),
        queries.length === 0 && h("p", { class: "empty" }, "None."),
        h(QueryScores, { head, queries: [...queries], largest }),
      ),
    ),
  );
}

/** @param {number | null} number @param {number | null} sum @param {string} unit */
function totalText(number, sum, unit) {
  const queries = number === null ? "" : counted(number, "query", "queries");
  const all = sum === null ? "" : `sum ${scoreText(sum, Math.abs(sum))}${unit && ` ${unit}`}`;
  return [queries, all].filter(Boolean).join(", ");
}

/** @param {{head: Head, queries: [number, number | null][], largest: number}} props */
function QueryScores({ head, queries, largest }) {
  return h(
    "ol",
    { class: "query-scores" },
    queries.map(([place, score]) =>
      h("li", { key: place }, h("span", { class: "score" }, scoreText(score, largest)), h("span", { class: "text" }, h(QueryLink, { head, place }), head.queries.answers[place] != null && h("small", null, h("bdi", null, plain(head.queries.answers[place] ?? ""))))),
    ),
  );
}

VIEWS["example"] = { title: "Example", of: "example", show: (props) => h(ExampleView, props) };
