// The kernels of csrc/metal on the host.
#include "metal/tq.metal"

namespace host_metal {

library & kernels() {
    static library all;
    return all;
}

} // namespace host_metal
