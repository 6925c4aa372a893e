import type { BenchCase } from '../bench-case.ts';
import { prepareBacklogCase } from './backlog-case.ts';

const TABLE = 'bench_large';

export const largeTransaction: BenchCase = {
  name: 'large-transaction',
  title: 'one transaction of many inserted rows, process start to equal',
  prepare: (context) =>
    prepareBacklogCase({
      context,
      unit: 'rows/s',
      async prepare({ sql }) {
        await sql.query(
          `create table ${TABLE} (aid int primary key, bid int, abalance int, filler char(84))`,
        );
      },
      async load({ sql }, repetition) {
        const { largeTransactionRows } = context.sizes;
        // Each repetition adds to the same table, so that none of them begins with the removal of another's rows.
        const first = repetition * largeTransactionRows;
        await sql.query(
          `insert into ${TABLE} select ${first} + i, i % 10, i, '' from generate_series(1, ${largeTransactionRows}) i`,
        );
        return largeTransactionRows;
      },
      targets: { oneProcess: { ofLimit: 1 }, replicatorAndReplica: { ofLimit: 1 } },
      checkSql: () => `select sum(aid + abalance) from ${TABLE}`,
    }),
};
