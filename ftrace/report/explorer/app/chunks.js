// @ts-check
/**
 * The chunks of a report: from the page itself, or from script files beside it.
 *
 * loadChunk(name)    a promise of its content; the last few are kept
 * Loaded(props)      loads a chunk and shows what `show(chunk)` makes of it; a line while it waits, or why it can't;
 *                    then loads what a reader may open next (`soon`); `onward` leads on from a chunk that can't be shown
 */

const KEPT_CHUNKS = 12;

/** @type {Map<string, Promise<any>>} */
const CHUNKS = new Map();
/** @type {Map<string, (base64: string) => void>} */
const ARRIVING = new Map();

window.ftraceChunk = (name, base64) => ARRIVING.get(name)?.(base64);

/**
 * Load a chunk by its name: "head", "query-3", "example-0".
 * @param {string} name
 * @returns {Promise<any>}
 */
function loadChunk(name) {
  const known = CHUNKS.get(name);
  const chunk = known ?? chunkText(name).then((base64) => decoded(name, base64));
  CHUNKS.delete(name);
  CHUNKS.set(name, chunk);
  if (known === undefined) chunk.catch(() => CHUNKS.delete(name));
  for (const oldest of CHUNKS.keys()) {
    if (CHUNKS.size <= KEPT_CHUNKS) break;
    CHUNKS.delete(oldest);
  }
  return chunk;
}

/**
 * @param {string} name
 * @returns {Promise<string>}
 */
function chunkText(name) {
  const island = document.getElementById(`chunk-${name}`);
  if (island !== null) return Promise.resolve(island.textContent ?? "");
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const fail = (/** @type {string} */ reason) => {
      ARRIVING.delete(name);
      script.remove();
      reject(new Error(reason));
    };
    ARRIVING.set(name, (base64) => {
      ARRIVING.delete(name);
      resolve(base64);
    });
    script.onerror = () =>
      fail(`The file chunks/${name}.js can’t be read. A report is a folder: keep index.html and chunks/ side by side.`);
    script.onload = () => (ARRIVING.has(name) ? fail(damaged(name)) : script.remove());
    script.src = `chunks/${name}.js`;
    document.head.append(script);
  });
}

/** @param {string} name */
function damaged(name) {
  return `The part “${name}” of this report is damaged. Copy the report again, or make it again with ftrace report.`;
}

/**
 * @param {string} name
 * @param {string} base64
 */
async function decoded(name, base64) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser can’t unpack the report. It takes one of 2024 or later: Chrome 123, Firefox 120, Safari 17.5.");
  }
  try {
    const bytes = Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return await new Response(stream).json();
  } catch {
    throw new Error(damaged(name));
  }
}

const FORMAT = "ftrace-report";
const VERSION = 1;

/**
 * Load the head, and refuse what this page can't read.
 * @returns {Promise<Head>}
 */
async function loadHead() {
  const head = await loadChunk("head");
  if (head?.format !== FORMAT) throw new Error(`Expected a report of the format ${FORMAT}, found ${head?.format}.`);
  if (!(head.version <= VERSION)) {
    throw new Error(
      `This report has version ${head.version} of its format, and this page reads up to ${VERSION}. Open the page that was made with it.`,
    );
  }
  return head;
}

/** @typedef {{name: string, show: (chunk: any) => preact.ComponentChildren, soon?: string[], onward?: preact.ComponentChildren}} LoadedProps */

/** @extends {preact.Component<LoadedProps, {name: string, chunk: any, problem: string}>} */
class Loaded extends Component {
  state = { name: "", chunk: null, problem: "" };
  /** @type {string | undefined} */
  asked = undefined;

  componentDidMount() {
    this.load();
  }

  componentDidUpdate() {
    if (this.state.name !== this.props.name) this.load();
  }

  load() {
    const { name } = this.props;
    if (this.asked === name) return;
    this.asked = name;
    const arrived = (/** @type {any} */ chunk, problem = "") => {
      if (this.asked !== name) return;
      this.setState({ name, chunk, problem });
      setTimeout(() => {
        if (this.asked === name) for (const next of this.props.soon ?? []) loadChunk(next).catch(() => null);
      }, 300);
    };
    loadChunk(name).then(arrived, (error) => arrived(null, error.message));
  }

  /** Say that a chunk lacks what this page expects in it, instead of showing nothing. */
  componentDidCatch() {
    this.setState({ problem: damaged(this.props.name) });
  }

  render() {
    const { name, chunk, problem } = this.state;
    if (name !== this.props.name) return h(Waiting, null);
    if (problem) return h(Fragment, null, this.props.onward, h("p", { class: "problem", role: "alert" }, problem));
    return this.props.show(chunk);
  }
}

/** A line that stands where something is being loaded; it shows only after a moment. */
function Waiting() {
  return h("p", { class: "waiting", role: "status" }, "Loading …");
}
