/** Everything that the browser gets: it writes with one request and reads with the next. */
export const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Notes</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 36rem; margin: 3rem auto; padding: 0 1rem; }
  form { display: flex; gap: .5rem; }
  input { flex: 1; }
  input, button { font: inherit; padding: .4rem .6rem; }
  p { color: #666; }
</style>
<h1>Notes</h1>
<p>Written to Postgres, read from this node's SQLite file. <span id="time"></span></p>
<form><input name="text" placeholder="a note" autofocus required><button>Save</button></form>
<ul></ul>
<script type="module">
  const form = document.querySelector('form');
  async function show() {
    const notes = await (await fetch('/notes')).json();
    document.querySelector('ul').replaceChildren(...notes.map(({ text }) => {
      const item = document.createElement('li');
      item.textContent = text;
      return item;
    }));
  }
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const body = JSON.stringify({ text: form.text.value });
    await fetch('/notes', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    const saved = performance.now();
    await show();
    document.querySelector('#time').textContent = 'Saved, and read again ' + (performance.now() - saved).toFixed(1) + ' ms later.';
    form.reset();
  });
  await show();
</script>
`;
