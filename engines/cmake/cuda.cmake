# Enables CUDA with an explicit list of architectures and finds the static runtime: CUDART, CUDART_INCLUDE_DIR.
cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH cuda_root)
cmake_path(GET cuda_root PARENT_PATH cuda_root)

if(NOT DGIQA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  # Code for one number runs on later ones of the same first digits, but never on Orin (87) and Thor (110, once 101).
  foreach(architecture 80 86 87 89 90 100 101 110 120)
    if(known MATCHES "sm_${architecture}[^0-9]")
      list(APPEND DGIQA_ARCHITECTURES ${architecture}-real)
      set(newest ${architecture})
    endif()
  endforeach()
  # For all other GPUs, code is compiled at loading time: for later ones from the newest, for the rest from the oldest.
  list(APPEND DGIQA_ARCHITECTURES 80-virtual ${newest}-virtual)
  list(REMOVE_DUPLICATES DGIQA_ARCHITECTURES)
  if(known MATCHES "sm_75[^0-9]")
    set(DGIQA_OLDER 75-real)  # only for preparing images
  endif()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${DGIQA_ARCHITECTURES})
message(STATUS "CUDA kernels: ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")

# The wheels have lib/ without lib64/ and libcudart.so.NN without libcudart.so: link the static runtime by its path.
set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${cuda_root}/lib")
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
find_library(CUDART_STATIC cudart_static HINTS ${cuda_root}/lib64 ${cuda_root}/lib REQUIRED NO_DEFAULT_PATH)
find_path(CUDART_INCLUDE_DIR cuda_runtime.h HINTS ${cuda_root}/include REQUIRED NO_DEFAULT_PATH)
find_package(Threads REQUIRED)
set(CUDART ${CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
