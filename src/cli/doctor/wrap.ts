import { stripVTControlCharacters } from 'node:util';

/** Breaks a text between words so that each line, behind the indent, fits. `columns` null: one line. */
export function wrap(text: string, columns: number | null, indent: number): string {
  if (columns === null) return text;
  const width = Math.max(20, columns - indent);
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    const longer = line === '' ? word : `${line} ${word}`;
    if (line !== '' && stripVTControlCharacters(longer).length > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line].join(`\n${' '.repeat(indent)}`);
}
