import { createTpcb } from '../../helpers/tpcb.ts';
import type { BenchCase } from '../bench-case.ts';
import { createBacklogProcedure, writeBacklog } from '../load/backlog.ts';
import { prepareBacklogCase } from './backlog-case.ts';

export const catchUp: BenchCase = {
  name: 'catch-up',
  title: 'catch-up with a backlog of TPC-B transactions, process start to equal',
  prepare: (context) =>
    prepareBacklogCase({
      context,
      unit: 'tx/s',
      async prepare(server) {
        await createTpcb(server.url, context.sizes.scale, context.sizes.accountsPerBranch);
        await createBacklogProcedure(server, context.sizes);
      },
      async load(server) {
        await writeBacklog(server, context.sizes.backlogTransactions);
        return context.sizes.backlogTransactions;
      },
      targets: { oneProcess: { ofLimit: 0.95 }, replicatorAndReplica: { ofLimit: 0.75 } },
      checkSql: () =>
        'select sum(abalance) + (select sum(delta * 3) + count(*) from pgbench_history) from pgbench_accounts',
    }),
};
