/** How much each case does. */
export interface Sizes {
  /** pgbench's scale; each branch has `accountsPerBranch` accounts. */
  readonly scale: number;
  readonly accountsPerBranch: number;
  readonly backlogTransactions: number;
  readonly largeTransactionRows: number;
  readonly copyRows: number;
  readonly largeCopyRows: number;
  /** Seconds of commits at each rate. */
  readonly lagSeconds: number;
  readonly pointReads: number;
  readonly requests: number;
  /** Of the replica file that goes to an object store and comes back. */
  readonly storedFileBytes: number;
  /** How many followers, one after the other. */
  readonly fanOutFollowers: readonly number[];
  readonly fanOutPerSecond: number;
  readonly fanOutSeconds: number;
}

export const NORMAL_SIZES: Sizes = {
  scale: 10,
  accountsPerBranch: 100_000,
  backlogTransactions: 100_000,
  largeTransactionRows: 1_000_000,
  copyRows: 1_000_000,
  largeCopyRows: 5_000_000,
  lagSeconds: 30,
  pointReads: 100_000,
  requests: 20_000,
  storedFileBytes: 1024 ** 3,
  fanOutFollowers: [1, 10, 100, 300, 1000],
  fanOutPerSecond: 1000,
  fanOutSeconds: 12,
};

/** Shows in less than a minute that every case works; its times mean nothing. */
export const SHORT_SIZES: Sizes = {
  scale: 1,
  accountsPerBranch: 10_000,
  backlogTransactions: 2_000,
  largeTransactionRows: 20_000,
  copyRows: 20_000,
  largeCopyRows: 50_000,
  lagSeconds: 1,
  pointReads: 2_000,
  requests: 500,
  storedFileBytes: 32 * 1024 ** 2,
  fanOutFollowers: [1, 20],
  fanOutPerSecond: 200,
  fanOutSeconds: 1,
};
