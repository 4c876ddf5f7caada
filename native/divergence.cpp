#include "module.hpp"

void register_divergence(nanobind::module_& m) { (void)m; }
