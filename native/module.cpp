// Table of contents of the native module; one function per subject, each in its own file.
#include "module.hpp"

NB_MODULE(_native, m) {
    m.doc() = "bitloss kernels: divergence of logits, sums of squares, codecs, audits, comparisons, casts, products.";
    register_divergence(m);
    register_squares(m);
    register_codecs(m);
    register_guarded(m);
    register_strings(m);
    register_audit(m);
    register_compare(m);
    register_casts(m);
    register_product(m);
}
