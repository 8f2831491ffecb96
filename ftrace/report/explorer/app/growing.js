// @ts-check
/**
 * Long lists: Growing(props) draws the first entries at once, and the others as soon as the browser has shown these.
 *
 * `asked` names what is listed: where it changes, the list begins anew. `least` entries are among the first in any case.
 * Whoever searches the page or prints it has all entries a moment later. Each step draws few enough that a key which is
 * pressed meanwhile needn't wait. A table's rows are in blocks, since browsers skip what isn't on the screen element by
 * element, and thousands of these would cost them more than they save.
 */

const BLOCK = { tbody: 20, ol: 8 };
const FIRST_BLOCKS = 3;

/**
 * @typedef {object} GrowingProps
 * @property {"ol" | "tbody"} tag  Of the list, or of each block of a table's rows.
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
  /** The blocks that were drawn with these props, which needn't be drawn again when others follow. */
  drawn = { props: this.props, blocks: /** @type {preact.VNode<any>[][]} */ ([]) };

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
    return this.state.asked === asked ? this.state.count : Math.max(FIRST_BLOCKS, Math.ceil(least / BLOCK[tag]));
  }

  grow() {
    clearTimeout(this.timer);
    const { tag, asked, entries } = this.props;
    const count = this.count();
    if (count * BLOCK[tag] >= entries.length) return;
    const isBegun = this.state.asked === asked;
    this.timer = setTimeout(() => this.setState({ count: count + 1, asked }), isBegun ? 0 : 120);
  }

  render() {
    const { tag, attributes = {}, entries, show } = this.props;
    if (this.drawn.props !== this.props) this.drawn = { props: this.props, blocks: [] };
    const { blocks } = this.drawn;
    const size = BLOCK[tag];
    for (let place = blocks.length; place < this.count() && (place === 0 || place * size < entries.length); place++) {
      const block = entries.slice(place * size, (place + 1) * size).map(show);
      blocks.push(tag === "tbody" ? [h(tag, { key: place, ...attributes }, block)] : block);
    }
    return tag === "tbody" ? h(Fragment, null, blocks.flat()) : h(tag, attributes, blocks.flat());
  }
}
