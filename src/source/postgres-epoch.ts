/** Times of the replication protocol count from the beginning of 2000: µs between that and 1970. */
export const POSTGRES_EPOCH_US = 946_684_800_000_000n;
