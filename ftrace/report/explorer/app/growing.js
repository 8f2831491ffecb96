// @ts-check
/**
 * Long lists: Growing(props) draws the first entries at once, and the others as soon as the browser has shown these.
 *
 * `asked` names what is listed: where it changes, the list begins anew. `least` entries are among the first in any case.
 * Whoever searches the page or prints it has all entries a moment later.
 */

const FIRST_ENTRIES = { tr: 60, li: 24 };
const MORE_ENTRIES = 400;

/**
 * @typedef {object} GrowingProps
 * @property {"ol" | "tbody"} tag
 * @property {object} [attributes]
 * @property {string} asked
 * @property {number} [least]
 * @property {any[]} entries
 * @property {(entry: any) => preact.VNode<any>} show
 */

/** @extends {preact.Component<GrowingProps, {count: number, asked: string | null}>} */
class Growing extends Component {
  /** @type {{count: number, asked: string | null}} */
  state = { count: 0, asked: null };
  timer = 0;

  componentDidMount() {
    this.grow();
  }

  componentDidUpdate() {
    this.grow();
  }

  componentWillUnmount() {
    clearTimeout(this.timer);
  }

  count() {
    const { tag, asked, least = 0 } = this.props;
    if (this.state.asked === asked) return this.state.count;
    return Math.max(FIRST_ENTRIES[tag === "ol" ? "li" : "tr"], least);
  }

  grow() {
    clearTimeout(this.timer);
    const { asked, entries } = this.props;
    const count = this.count();
    if (count >= entries.length) return;
    const isBegun = this.state.asked === asked;
    this.timer = setTimeout(() => this.setState({ count: count + MORE_ENTRIES, asked }), isBegun ? 0 : 120);
  }

  render() {
    const { tag, attributes = {}, entries, show } = this.props;
    return h(tag, attributes, entries.slice(0, this.count()).map(show));
  }
}
