/* The search page fetches the pages that it found, to quote them. A browser fetches nothing for a page that was
   opened as a file, so there the pages come from a script, which is only loaded then. */
if (location.protocol === "file:") {
  const loaded = new Promise((done) => {
    const script = document.createElement("script");
    script.src = new URL("pages.js", document.currentScript.src);
    script.onload = done;
    document.head.append(script);
  });
  window.fetch = async (address) => {
    await loaded;
    return new Response(PAGES[new URL(address, location).pathname.split("/").pop()]);
  };
}
