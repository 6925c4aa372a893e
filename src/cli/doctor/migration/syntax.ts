import { hasSqlDetails, type Node, parse } from 'libpg-query';
import { type FilePart, lineAt } from './statements.ts';

export type Parsed =
  | { readonly kind: 'statement'; readonly part: FilePart; readonly node: Node }
  | { readonly kind: 'psql'; readonly part: FilePart }
  | { readonly kind: 'error'; readonly part: FilePart; readonly line: number; readonly message: string };

/** Parses each statement by itself, with Postgres' own parser (of 18), so that an error hides no other. */
export async function parseParts(parts: readonly FilePart[]): Promise<Parsed[]> {
  const parsed: Parsed[] = [];
  for (const part of parts) {
    if (part.kind === 'psql') {
      parsed.push({ kind: 'psql', part });
      continue;
    }
    try {
      const { stmts } = await parse(part.text);
      for (const { stmt } of stmts ?? [])
        if (stmt !== undefined) parsed.push({ kind: 'statement', part, node: stmt });
    } catch (error) {
      parsed.push({ kind: 'error', part, ...explain(error, part) });
    }
  }
  return parsed;
}

function explain(error: unknown, part: FilePart): { line: number; message: string } {
  const message = (error as Error).message;
  // In characters from 0; past the end where the input ends too early.
  const at = hasSqlDetails(error) ? (error.sqlDetails?.cursorPosition ?? 0) : 0;
  return { line: part.line + lineAt(part.text, Math.max(0, at)) - 1, message };
}
