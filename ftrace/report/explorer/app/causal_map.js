// @ts-check
/**
 * Where in the model a fact lives: the view "causal". For each stack and mediator a map of effects, by token and layer, as
 * a table; beside them the effects and the scores by layer.
 */

/** @typedef {Causal["stacks"][number]} CausalStack */
/** @typedef {CausalStack["mediators"][number]} Mediator */

/** @param {ViewProps} props */
function CausalView({ chunk }) {
  const { causal } = chunk;
  if (causal === null) return h("p", { class: "empty" }, "Nobody has traced this query. ftrace causal-trace does.");
  return h(
    Fragment,
    null,
    causal.status !== "traced" && h(Problems, { texts: [`Not traced: ${causal.reason || "no reason is given"}.`] }),
    causal.clean !== null && h("p", { class: "reading" }, mapText(causal)),
    causal.stacks.map((stack) =>
      h(
        "section",
        { key: stack.name, class: "stack", "aria-label": plain(stack.name) },
        h("h2", null, plain(stack.name)),
        h("div", { class: "maps" }, stack.mediators.map((mediator) => h(EffectMap, { key: mediator.title, stack, mediator }))),
      ),
    ),
    causal.profile !== null && h(Profile, { profile: causal.profile }),
  );
}

/** Say once what all maps show. @param {Causal} causal */
function mapText({ clean, corrupted, stacks }) {
  const mediators = stacks.flatMap((stack) => stack.mediators);
  return [
    `The answer has a probability of ${percent(clean)}, and of ${percent(corrupted)} with a corrupted subject.`,
    mediators.length > 0 && "A cell says by how many percentage points it rises again when a part of the undisturbed model is put back, at this token and in this layer.",
    stacks.some(({ subject: [first, end] }) => first < end) && "The subject’s tokens are bold, with a line.",
    mediators.some(({ peak }) => peak !== null) && "A ring marks the largest effect of each map, which sets its scale of colours.",
    mediators.some(({ readout }) => readout.length > 0) && "Where the answer is read off, effects are large in every model: these cells are in italics, and count for neither.",
  ]
    .filter(Boolean)
    .join(" ");
}

/** @param {{stack: CausalStack, mediator: Mediator}} props */
function EffectMap({ stack, mediator }) {
  const readout = new Set(mediator.readout.map(String));
  const scaled = mediator.effects.map((row, token) => row.filter((_, layer) => !readout.has(String([token, layer]))));
  const largest = largestOf(scaled.flat()) || largestOf(mediator.effects.flat());
  const layers = mediator.effects[0]?.length ?? 0;
  const [first, end] = stack.subject;
  const title = plain(mediator.title);
  return h(
    "section",
    { class: "map", "aria-label": title },
    h("h3", null, title),
    h(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", "aria-label": `${plain(stack.name)}: ${title}` },
      h(
        "table",
        { class: "effects" },
        h("thead", null, h("tr", null, h("td", null, h("span", { class: "unseen" }, "Token")), Array.from({ length: layers }, (_, layer) => h("th", { scope: "col", key: layer }, layer === 0 ? h(Fragment, null, h("span", { class: "soft" }, "layer "), 0) : layer)))),
        h(
          "tbody",
          null,
          stack.tokens.map((token, place) => {
            const isSubject = first <= place && place < end;
            return h(
              "tr",
              { key: place, class: isSubject ? "subject" : "" },
              h("th", { scope: "row" }, h("bdi", { class: "words" }, plain(token)), isSubject && h("span", { class: "unseen" }, ", subject")),
              (mediator.effects[place] ?? []).map((effect, layer) => h(EffectCell, { key: layer, effect, largest, isPeak: mediator.peak?.[0] === place && mediator.peak[1] === layer, isReadout: readout.has(String([place, layer])) })),
            );
          }),
        ),
      ),
    ),
  );
}

/** @param {{effect: number | null, largest: number, isPeak: boolean, isReadout: boolean}} props */
function EffectCell({ effect, largest, isPeak, isReadout }) {
  const share = largest && effect !== null ? Math.min(1, Math.abs(effect) / largest) : 0;
  const sign = (effect ?? 0) < 0 ? "minus" : "plus";
  return h(
    "td",
    { class: `${sign}${isPeak ? " peak" : ""}${isReadout ? " read-off" : ""}`, style: { "--heat": `${Math.round(share * 100)}%` } },
    pointsText(effect),
    isPeak && h("span", { class: "unseen" }, ", the largest effect"),
  );
}

/** @param {number | null} points */
function pointsText(points) {
  if (points === null) return UNKNOWN;
  if (Math.abs(points) < 0.05) return "0";
  return withMinus(points.toFixed(Math.abs(points) < 9.95 ? 1 : 0));
}

/** @param {{profile: NonNullable<Causal["profile"]>}} props */
function Profile({ profile }) {
  const { layers, effects, scores, correlation, notes } = profile;
  const [largestEffect, largestScore] = [largestOf(effects), largestOf(scores)];
  return h(
    "section",
    { class: "profile", "aria-label": "Effects and scores by layer" },
    h("h2", null, "By layer: effects beside scores ", correlation !== null && h("small", null, `rank correlation ${withMinus(correlation.toFixed(2))}`)),
    layers.length > 0 &&
      h(
        "div",
        { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of layers" },
        h(
          "table",
          { class: "plain" },
          h("thead", null, h("tr", null, h("th", { scope: "col" }, "Layer"), h("th", { scope: "col", colSpan: 2 }, "Causal effect"), h("th", { scope: "col", colSpan: 2 }, "Scores of the examples"))),
          h(
            "tbody",
            null,
            layers.map((layer, at) =>
              h("tr", { key: at }, h("th", { scope: "row" }, plain(layer)), h(ProfileCells, { value: effects[at] ?? null, largest: largestEffect }), h(ProfileCells, { value: scores[at] ?? null, largest: largestScore })),
            ),
          ),
        ),
      ),
    notes.map((note) => h("p", { class: "count", key: note }, h("bdi", null, plain(note)))),
  );
}

/** @param {{value: number | null, largest: number}} props */
function ProfileCells({ value, largest }) {
  return h(Fragment, null, h("td", { class: "number" }, scoreText(value, largest)), h("td", null, h(TwoSidedBar, { share: largest ? (value ?? 0) / largest : 0 })));
}

VIEWS["causal"] = { title: "Where it lives", of: "query", show: (props) => h(CausalView, props), isEmpty: (_, chunk) => chunk.causal === null };
