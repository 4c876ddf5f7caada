#pragma once
#include <nanobind/nanobind.h>

void register_divergence(nanobind::module_& m);  // divergence.cpp
void register_squares(nanobind::module_& m);     // squares.cpp
void register_codecs(nanobind::module_& m);      // codecs.cpp
void register_guarded(nanobind::module_& m);    // guarded.cpp
void register_strings(nanobind::module_& m);     // strings.cpp
void register_audit(nanobind::module_& m);       // audit.cpp
void register_compare(nanobind::module_& m);     // compare.cpp
void register_casts(nanobind::module_& m);       // casts.cpp
void register_product(nanobind::module_& m);     // product.cpp
