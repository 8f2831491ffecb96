/** What the page provides to the parts of the app: the vendored libraries, and the function that chunks call. */

declare const preact: typeof import("preact");
declare const uPlot: typeof import("uplot");
declare function ftraceChunk(name: string, base64: string): void;
interface Window {
  ftraceChunk: (name: string, base64: string) => void;
}
