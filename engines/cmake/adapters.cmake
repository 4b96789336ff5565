# One adapter per host, built if its headers are found; CMake says which it skips.

# torch: the op of dgiqa/nn/attention.py. Its CPU kernel is the emulated one, under another name if there is a CUDA one.
set(torch_python ${TORCH_PYTHON})
if(NOT torch_python)
  find_program(DGIQA_PYTHON NAMES python3 python)
  set(torch_python ${DGIQA_PYTHON})
endif()
if(torch_python)
  execute_process(
    COMMAND ${torch_python} -c "
import importlib.metadata, importlib.util, pathlib
root = pathlib.Path(importlib.util.find_spec('torch').origin).parent  # not imported: that takes seconds
stable = (root / 'include/torch/csrc/stable/library.h').exists()
version = tuple(map(int, importlib.metadata.version('torch').split('.')[:2]))
print(root if stable and version >= (2, 10) else '')"
    OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT torch_root AND TORCH_PYTHON)
  message(FATAL_ERROR "TORCH_PYTHON=${TORCH_PYTHON} has no torch 2.10 or newer")
elseif(NOT torch_root)
  message(STATUS "skipped: torch op (no torch 2.10 or newer; set TORCH_PYTHON to a Python that has one)")
elseif(DGIQA_SANITIZE)
  message(STATUS "skipped: torch op (DGIQA_SANITIZE=ON; torch itself is not built for it)")
else()
  message(STATUS "torch op: ${torch_root}")
  add_library(dgiqa_torch SHARED engines/torch_op.cpp $<TARGET_OBJECTS:dgiqa_host>)
  set_target_properties(dgiqa_torch PROPERTIES CXX_STANDARD 20)
  target_compile_definitions(dgiqa_torch PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
  target_include_directories(dgiqa_torch SYSTEM PRIVATE ${torch_root}/include)
  target_link_directories(dgiqa_torch PRIVATE ${torch_root}/lib)
  target_link_libraries(dgiqa_torch PRIVATE torch_cpu)
  if(cuda_found AND NOT EXISTS ${torch_root}/lib/libtorch_cuda.so)
    message(STATUS "skipped: the torch op's CUDA kernels (this torch is built without CUDA)")
  endif()
  if(cuda_found AND EXISTS ${torch_root}/lib/libtorch_cuda.so)
    target_link_libraries(dgiqa_torch PRIVATE -Wl,--no-as-needed torch_cuda -Wl,--as-needed)
    add_library(dgiqa_emulated_beside OBJECT ${CMAKE_CURRENT_BINARY_DIR}/attention_emulated.cpp)
    target_compile_definitions(
      dgiqa_emulated_beside PRIVATE dgiqa_window_attention=dgiqa_window_attention_emulated)
    target_compile_options(dgiqa_emulated_beside PRIVATE -Wno-unknown-pragmas)
    target_sources(dgiqa_torch PRIVATE $<TARGET_OBJECTS:dgiqa_cuda_attention> $<TARGET_OBJECTS:dgiqa_emulated_beside>)
    target_compile_definitions(dgiqa_torch PRIVATE DGIQA_WITH_CUDA USE_CUDA)
    target_include_directories(dgiqa_torch SYSTEM PRIVATE ${CUDART_INCLUDE_DIR})
    target_link_libraries(dgiqa_torch PRIVATE ${CUDART})
  else()
    target_sources(dgiqa_torch PRIVATE $<TARGET_OBJECTS:dgiqa_emulated_objects>)
  endif()
endif()

# TensorRT: the plugin that implements ai.dgiqa's DgiqaWindowAttention.
if(NOT TENSORRT_INCLUDE_DIR)
  message(STATUS "skipped: TensorRT plugin (set TENSORRT_INCLUDE_DIR to the directory of NvInfer.h)")
elseif(NOT EXISTS ${TENSORRT_INCLUDE_DIR}/NvInfer.h)
  message(FATAL_ERROR "TENSORRT_INCLUDE_DIR=${TENSORRT_INCLUDE_DIR} has no NvInfer.h")
elseif(NOT cuda_found)
  message(STATUS "skipped: TensorRT plugin (it needs the CUDA kernels)")
else()
  message(STATUS "TensorRT plugin: ${TENSORRT_INCLUDE_DIR}")
  add_library(dgiqa_tensorrt SHARED engines/tensorrt_plugin.cpp $<TARGET_OBJECTS:dgiqa_cuda_attention>
                                    $<TARGET_OBJECTS:dgiqa_host>)
  target_include_directories(dgiqa_tensorrt SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CUDART_INCLUDE_DIR})
  target_link_libraries(dgiqa_tensorrt PRIVATE ${CUDART})
endif()
