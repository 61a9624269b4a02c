// An option of a command is found with its dashes too, which would mean "without" to the search.
document.querySelector("[data-md-component=search-query]")?.addEventListener("input", (event) => {
  const plain = event.target.value.replace(/(^|\s)-+/g, "$1");
  if (plain !== event.target.value) event.target.value = plain;
});
