import pg from 'pg';
import type { BenchServer } from '../bench-server.ts';
import type { Sizes } from '../sizes.ts';

/** Sessions that write at once, so that transactions interleave in the WAL as those of pgbench do. */
const SESSIONS = 4;

/**
 * pgbench's TPC-B-like transaction (three updates, one insert), committed in a loop by the server itself: the
 * same backlog on machines with and without pgbench, in a fraction of the time.
 */
export async function createBacklogProcedure(
  { sql }: BenchServer,
  { scale, accountsPerBranch }: Sizes,
): Promise<void> {
  await sql.query(`
    create procedure bench_tpcb(transactions int) language plpgsql as $$
    declare
      account int; teller int; branch int; change int;
    begin
      for i in 1..transactions loop
        account := 1 + floor(random() * ${scale * accountsPerBranch});
        teller := 1 + floor(random() * ${scale * 10});
        branch := 1 + floor(random() * ${scale});
        change := floor(random() * 10001) - 5000;
        update pgbench_accounts set abalance = abalance + change where aid = account;
        update pgbench_tellers set tbalance = tbalance + change where tid = teller;
        update pgbench_branches set bbalance = bbalance + change where bid = branch;
        insert into pgbench_history (tid, bid, aid, delta, mtime) values (teller, branch, account, change, clock_timestamp());
        commit;
      end loop;
    end $$`);
}

/** Commits so many transactions. They do not wait for the disk: making the load is not what is measured. */
export async function writeBacklog({ url }: BenchServer, transactions: number): Promise<void> {
  await Promise.all(
    Array.from({ length: SESSIONS }, async () => {
      const client = new pg.Client({ connectionString: url });
      await client.connect();
      try {
        await client.query('set synchronous_commit = off');
        await client.query(`call bench_tpcb(${transactions / SESSIONS})`);
      } finally {
        await client.end();
      }
    }),
  );
}
