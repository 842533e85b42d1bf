/** Takes one line for the person who waits; the demo prints it, the engine logs it. */
export type Progress = (line: string) => void;
