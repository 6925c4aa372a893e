import { type CheckReport, checkConsistency } from '../consistency/checker.ts';
import { Nodes } from '../consistency/nodes.ts';
import type { Major } from '../helpers/postgres.ts';

/** Of all operations, through the middleware and the proxies each; the rest go through the library, in batches. */
const HTTP_SHARE = 0.04;

/** Sessions on nodes of every kind, faults of every kind, two new histories on the way. */
export async function readYourWrites(options: {
  readonly major: Major;
  readonly operations: number;
  readonly log?: (line: string) => void;
}): Promise<CheckReport> {
  const { major, operations, log = () => undefined } = options;
  const overHttp = Math.ceil(operations * HTTP_SHARE);
  await using nodes = await Nodes.start({
    major,
    sessions: 400,
    libraryNodes: [2, 1],
    proxyNodes: ['file', 'process'],
  });
  return await checkConsistency(nodes, {
    operations: { library: operations - 2 * overHttp, middleware: overHttp, proxy: overHttp },
    newHistories: 2,
    log,
  });
}
