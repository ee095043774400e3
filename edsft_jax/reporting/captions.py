"""The figures with their captions for LaTeX."""

from collections.abc import Iterable

from edsft_jax.reporting.exhibits import Exhibit

_ESCAPED = {
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '−': '$-$',
  '→': r'$\rightarrow$',
}


def latex(exhibits: Iterable[Exhibit]) -> str:
  """A figure environment per exhibit; the preamble needs graphicx."""
  parts = ['% Needs \\usepackage{graphicx}; the files are next to this one.\n']
  for exhibit in exhibits:
    parts.append(
      '\\begin{figure}\n'
      '  \\centering\n'
      f'  \\includegraphics[width=\\linewidth]{{{exhibit.name}.pdf}}\n'
      f'  \\caption{{{_escaped(exhibit.text)}}}\n'
      f'  \\label{{fig:{exhibit.name.replace("_", "-")}}}\n'
      '\\end{figure}\n'
    )
  return '\n'.join(parts)


def _escaped(text: str) -> str:
  return ''.join(_ESCAPED.get(character, character) for character in text)
