/** Nothing to start here: every integration file brings its own servers. Fails early on a wrong Node. */
export default function setup(): void {
  const major = Number(process.versions.node.split('.')[0]);
  if (major < 22)
    throw new Error(
      `the tests run on Node ${process.versions.node}: use npm scripts, which take the pinned one`,
    );
}
