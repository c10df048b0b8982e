"A step of `nbdev_docs`: the definitions of a notebook are shown, and its other cells are not run again."
from nbdev.processors import add_links, exec_show_docs

# nbdev's own step (in `skip_procs` of settings.ini) runs each cell that holds an import, without the cells that it builds on


class show_exports(exec_show_docs):
    "Run the `show_doc` cells alone, over the module that the notebook exports"
    def __init__(self, nb):
        super().__init__(nb)
        self.module = next((c.directives_["default_exp"][0] for c in nb.cells if "default_exp" in c.directives_), None)

    def begin(self):
        super().begin()
        if self.module: self.k.run_cell(f"from llmdata_nb.{self.module} import *")

    def __call__(self, cell):
        if cell.cell_type != "code" or "show_doc(" not in cell.source: return
        self.k.cell(cell)
        if self.k.exc: raise RuntimeError(f"{self.nb.path_}: {cell.source}") from self.k.exc
        add_links(cell)
