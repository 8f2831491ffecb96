/**
 * What a report holds: format "ftrace-report", version 1. docs/report.md says how it is stored.
 *
 * Ids are texts of decimal digits, since int64 exceeds 2^53. A number that is not known or not finite is null. Texts are
 * as they were in the data: the page shows control characters and changes of the writing direction as visible escapes.
 * Whoever changes a field's meaning raises the version; fields may be added, and readers leave out what they don't know.
 */

type Id = string;
/** Begin and end in a text, counted in UTF-16 units as JavaScript does; ascending and apart from each other. */
type Span = [number, number];

/** Chunk "head". */
interface Head {
  format: "ftrace-report";
  version: 1;
  made_by: string;
  title: string;
  /** A hash of the content, under which a reader's notes are kept. */
  fingerprint: string;
  /** Whether texts were left out. */
  is_redacted: boolean;
  /** What was left out or cut, a sentence each. */
  limits: string[];
  /** The sources of scores, in the order in which they were given. */
  methods: Method[];
  queries: QueryList;
  /** The first id of each chunk "example-N", ascending as numbers. */
  example_chunks: Id[];
  run: RunPage;
}

interface Method {
  /** How it is called: "online learning". */
  title: string;
  /** The kind of scores; "" if it has no name. */
  kind: string;
  /** "nats", or "" for scores without a unit. */
  unit: string;
  /** Why the scores can't be trusted, a sentence each. */
  doubts: string[];
  /** Whether all examples are ranked, and not only the strongest known. */
  is_complete: boolean;
  /** Number of examples; null if only the strongest are known. */
  num_examples: number | null;
  /** Whether it knows opponents. */
  has_opponents: boolean;
  /** By axis ("epoch", "layer", "learned"): the names of the parts that scores are broken down by. */
  axes: Record<string, string[]>;
}

/** One entry for each query in each list. */
interface QueryList {
  ids: Id[];
  names: (string | null)[];
  /** Cut to 300 characters, as answers and what was said. */
  prompts: (string | null)[];
  answers: (string | null)[];
  said: (string | null)[];
  said_right: (boolean | null)[];
  first_losses: (number | null)[];
  last_losses: (number | null)[];
  /** The first step at which each was answered right; -1: never; null: nobody asked. */
  learned_steps: (number | null)[];
  /** "known", "learned", ...: as in `Answered`; null likewise. */
  states: (string | null)[];
  /** By method, then by query: P@10, from 0 to 1; null where ground truth is not known. */
  precisions: (number | null)[][];
  /** The highest P@10 that any method could reach, which few ground-truth proponents keep low; null likewise. */
  best_precisions: (number | null)[];
  /** 1 minus the mean share of the ten strongest that two methods have in common; null with one method. */
  disagreements: (number | null)[];
  /** Further properties to filter by ("relation", "query_set"), in lists like the others. */
  facets: Record<string, (string | null)[]>;
}

/** Chunk "query-N", N: position in the list of queries. */
interface QueryChunk {
  id: Id;
  name: string | null;
  prompt: string | null;
  /** Characters of the prompt that were left out at its end. */
  cut: number;
  answer: string | null;
  accepted: string[];
  said: Said | null;
  /** Other fields that are known, such as fact_id or relation: name and value. */
  properties: [string, string][];
  loss: Loss | null;
  /** null: nobody asked. */
  answered: Answered | null;
  warnings: string[];
  /** Whatever any method lists, each once. */
  examples: Example[];
  /** By method; null if it doesn't know the query. */
  lists: (Lists | null)[];
  /** The scores of the strongest, by epoch, layer and so on. */
  parts: Parts[];
  tokens: Tokens | null;
  causal: Causal | null;
}

interface Said {
  text: string | null;
  probability: number | null;
  right: boolean | null;
  /** The snapshot that was asked; "" if it is not known. */
  snapshot: string;
}

interface Loss {
  /** Optimizer steps, ascending. */
  steps: number[];
  /** The query's loss at each, in nats. */
  values: (number | null)[];
}

/** When a query was answered right. */
interface Answered {
  /** "known": right when it was first asked; "forgotten": right once, but not at the end. */
  state: "known" | "learned" | "learned again" | "forgotten" | "never";
  /** The first step at which it was right; -1 if never. */
  step: number;
  /** "first answered right at step 40" */
  text: string;
}

interface Example {
  id: Id;
  name: string | null;
  text: string | null;
  /** Characters of the text that were left out at its end. */
  cut: number;
  answer: string | null;
  states_fact: boolean | null;
  /** What it shares with the query's fact, if it doesn't state it. */
  kind: "same subject" | "same object" | "same relation" | "other" | null;
  /** Where the text has words of the query that not many examples have. */
  shared: Span[];
  /** By method; null where it is not ranked. */
  places: (Place | null)[];
  /** Position in `examples` of the first one that this one is a near-duplicate of; its own if it is like none before. */
  alike: number;
}

interface Place {
  /** 1 plus the number of examples with a larger score; null if it is not known, as in a list of opponents alone. */
  rank: number | null;
  /** 1 plus the number of examples with a smaller score; null likewise. */
  rank_from_below: number | null;
  /** How many other examples have the same score. */
  ties: number;
  score: number | null;
  /** The score as a share of the query's largest absolute score; null if that is 0. */
  share: number | null;
}

interface Lists {
  /** Number of examples that are ranked, of those with a positive and with a negative score; null if not known. */
  candidates: number | null;
  positive: number | null;
  negative: number | null;
  /** Positions in `examples`, strongest first. */
  proponents: number[];
  /** Only those with a negative score, strongest first; null if the method knows none. */
  opponents: number[] | null;
  /** How many more examples have the score of the last one that is listed. */
  more_proponents_like_last: number;
  more_opponents_like_last: number;
}

interface Parts {
  /** Position in `methods` of the head. */
  method: number;
  /** One of the method's axes. */
  axis: string;
  /** Positions in `examples`. */
  examples: number[];
  /** By example, then by part. */
  values: (number | null)[][];
}

interface Tokens {
  /** The method whose strongest examples these are: a position in `methods` of the head. */
  method: number;
  /** The snapshot at which the products are taken. */
  snapshot: string;
  /** What the values are, and what they leave out, in a few sentences. */
  note: string;
  examples: {
    /** A position in `examples`. */
    example: number;
    /** The inner product of the two gradients: the sum of all values, and of what the note says is left out. */
    total: number | null;
    sequences: {
      /** "input", "target" or "text". */
      name: string;
      tokens: string[];
      values: (number | null)[];
    }[];
  }[];
}

interface Causal {
  status: "traced" | "wrong" | "refused";
  /** Why it was not traced; "" if it was. */
  reason: string;
  /** Probability of the answer, from 0 to 1, undisturbed and with a corrupted subject. */
  clean: number | null;
  corrupted: number | null;
  stacks: {
    /** "encoder" or "decoder". */
    name: string;
    tokens: string[];
    /** First token of the subject, and the one after its last; equal if the stack doesn't read it. */
    subject: [number, number];
    mediators: {
      /** "hidden state", "MLP window", ... */
      title: string;
      /** By token, then by layer: the indirect effect in percentage points. */
      effects: (number | null)[][];
      /**
       * Cells, as token and layer, at which the answer is read off. They are large in every model, so that the scale of
       * colours leaves them out, and the peak is in none of them.
       */
      readout: [number, number][];
      /** Token and layer of the largest effect. */
      peak: [number, number] | null;
    }[];
  }[];
  /** Effects and scores by layer; null if scores are not known by layer. */
  profile: {
    /** Layers that were traced, and then the other parts of the model that have scores. */
    layers: string[];
    /** In the unit that the notes name; null in parts that were not traced. */
    effects: (number | null)[];
    scores: (number | null)[];
    /** Their rank correlation. */
    correlation: number | null;
    /** What they are, a sentence each. */
    notes: string[];
  } | null;
}

/** Chunk "example-N". */
interface ExampleChunk {
  examples: ExamplePage[];
}

interface ExamplePage {
  id: Id;
  name: string | null;
  text: string | null;
  cut: number;
  answer: string | null;
  /** By method; null where it is not ranked for any query. */
  methods: (ExampleTotals | null)[];
}

interface ExampleTotals {
  /** Number of the report's queries for which its score is positive, and negative, and the sums of these; null if not known. */
  helped: number | null;
  hurt: number | null;
  sum_helped: number | null;
  sum_hurt: number | null;
  /** The queries that it helped most, strongest first: position in the list of queries, and score. */
  most_helped: [number, number | null][];
  most_hurt: [number, number | null][];
}

interface RunPage {
  /** The run's folder; null outside of a run. */
  folder: string | null;
  evaluation: Evaluation | null;
  ledger: LedgerPage | null;
  /** What the averages of causal tracing say; null if nobody traced. */
  causal: { facts: [string, string][] } | null;
  /** Of each method's store: what its manifest says, by name. */
  manifests: { title: string; facts: [string, string][] }[];
  /** What is claimed, and a command that tests it. */
  claims: { claim: string; command: string }[];
}

interface Evaluation {
  /** "80 queries (learned, of 80), 12,720 candidates each" */
  title: string;
  metrics: string[];
  rows: { name: string; cells: { mean: number | null; low: number | null; high: number | null }[] }[];
  /** The best that any method could get, by metric; null where it is not known. */
  ceiling: (number | null)[];
  notes: string[];
}

interface LedgerPage {
  /** "The scores explain 119% of what the queries learned ..." */
  sentence: string;
  doubts: string[];
  /** Ends of stretches of training, in optimizer steps, ascending; one more than there are stretches. */
  steps: number[];
  /** By stretch: the mean fall of a query's loss, in nats. */
  actual: (number | null)[];
  /** What explains it, by account and stretch. */
  accounts: { name: string; values: (number | null)[] }[];
}
