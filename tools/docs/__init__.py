"""What the site is made of beside its Markdown: `hooks` is what mkdocs.yml names."""
