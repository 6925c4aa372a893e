/** Bugs of Postgres's logical decoding that can hurt a mirror, by the minor release that mends them. */
interface KnownBug {
  /** By major, the first minor without it; majors that are not named never had it. */
  readonly mendedIn: Readonly<Record<number, number>>;
  readonly says: string;
}

/** From the release notes, https://www.postgresql.org/docs/release/17.5/ and https://www.postgresql.org/docs/release/17.6/ */
const KNOWN_BUGS: readonly KnownBug[] = [
  {
    mendedIn: { 14: 18, 15: 13, 16: 9, 17: 5 },
    says: 'schema changes with weak locks (ALTER PUBLICATION … ADD TABLE, for one) can lose rows of transactions that run meanwhile',
  },
  {
    mendedIn: { 14: 19, 15: 14, 16: 10, 17: 6 },
    says: 'after a crash decoding can wait for ever for a half-written record, and many schema changes side by side can end in "invalid memory alloc request size"',
  },
];

/** What this server's minor release still has, and the minor to update to; null if nothing is known. */
export function knownBugs(
  version: number,
): { readonly bugs: readonly string[]; readonly mendedIn: string } | null {
  const major = Math.floor(version / 10_000);
  const minor = version % 10_000;
  const present = KNOWN_BUGS.filter(({ mendedIn }) => minor < (mendedIn[major] ?? 0));
  if (present.length === 0) return null;
  const mended = Math.max(...present.map(({ mendedIn }) => mendedIn[major]!));
  return { bugs: present.map(({ says }) => says), mendedIn: `${major}.${mended}` };
}
