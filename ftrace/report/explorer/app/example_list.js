// @ts-check
/** A list of training examples, strongest first: ExampleList(props). */
