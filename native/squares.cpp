#include "module.hpp"

void register_squares(nanobind::module_& m) { (void)m; }
