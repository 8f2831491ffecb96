/**
 * What the page provides to the parts of the app: the function that chunks call. The vendored library is there as
 * `preact`, as its own types say ("export as namespace").
 */

interface Window {
  ftraceChunk: (name: string, base64: string) => void;
}
