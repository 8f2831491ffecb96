/**
 * What the page provides to the parts of the app: the function that chunks call. The vendored libraries are there as
 * `preact` and `uPlot`, as their own types say ("export as namespace").
 */

interface Window {
  ftraceChunk: (name: string, base64: string) => void;
}
