/**
 * How long a reader of a report waits. Runs in its page, before any script of the page does.
 *
 * stopwatch.first        when the list of queries, and the first examples of one, were on the screen
 * stopwatch.after(...)   how long it takes from an event until the screen shows something else
 * stopwatch.letters()    how long each letter typed from now on takes
 * stopwatch.frames(...)  how long frames take until something holds, while `move` is called in each
 *
 * All in milliseconds; what is on the screen is looked at before each frame and counts when the frame is painted.
 */
(() => {
  const text = (selector) => document.querySelector(selector)?.textContent ?? null;
  const rows = () => document.querySelectorAll(".query-table tbody tr").length;
  /** What views show; null while they don't. */
  const LOOKS = {
    list: () => text(".query-table tbody tr") && text(".query-table thead tr") + text(".query-table tbody tr"),
    query: () => text(".proponents .entry") && text(".query-head h1") + text(".pager"),
    examples: () => text(".proponents .entry") && text(".proponents .entry"),
    compared: () => text("table.compared tbody tr"),
    example: () => text(".example-page .query-scores"),
    help: () => text(".help"),
  };

  const painted = () =>
    new Promise((resolve) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => resolve(performance.now());
      port2.postMessage(null);
    });
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  const until = async (holds) => {
    do await frame();
    while (!holds());
    return painted();
  };

  const first = { list: until(() => LOOKS.list() !== null), query: until(() => LOOKS.query() !== null) };

  /** Whether an event of this type has been handled and another look than now is on the screen. */
  const after = async (type, name) => {
    const look = LOOKS[name];
    const before = look();
    const start = await new Promise((resolve) =>
      addEventListener(type, (event) => resolve(event.timeStamp), { capture: true, once: true }),
    );
    return (await until(() => look() !== null && look() !== before)) - start;
  };

  const letters = () => {
    const waits = [];
    addEventListener("input", (event) => waits.push(until(() => true).then((end) => end - event.timeStamp)), true);
    return () => Promise.all(waits);
  };

  const frames = async (holds, move = () => {}) => {
    const lengths = [];
    let last = await frame();
    while (!holds()) {
      move();
      const now = await frame();
      lengths.push(now - last);
      last = now;
    }
    return lengths;
  };

  /** Scroll to the end by less than a screen in each frame. */
  const scrollToEnd = () => {
    const root = document.documentElement;
    return frames(() => root.scrollTop + innerHeight >= root.scrollHeight - 2, () => scrollBy(0, 500));
  };

  window.stopwatch = { first, after, letters, frames, rows, scrollToEnd };
})();
