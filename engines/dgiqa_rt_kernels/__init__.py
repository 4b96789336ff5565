"""The compiled kernels of DGIQA-RT: data only. dgiqa.runtime.kernels finds the library and checks it by its hash."""
